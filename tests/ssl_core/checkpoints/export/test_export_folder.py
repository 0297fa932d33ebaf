import json
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from ssl_core.checkpoints.export.folder import CONTENTS, PREPARATION, WEIGHTS, is_export, load_network, open_export
from tests.support.exports import SIZE_PX, write_export

NETWORKS = ["resnet18", "timm/test_vit"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_an_export_has_the_features_of_the_network(name: str, channels: int, tmp_path: Path) -> None:
    network = write_export(tmp_path / "export", name, channels)
    assert is_export(tmp_path / "export")
    export = open_export(tmp_path / "export", "init")
    assert (export.network, export.input) == (name, (SIZE_PX, (0.5,), (0.25,)))
    images = torch.rand(3, 1, SIZE_PX, SIZE_PX)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_network(export, "init").module(images), network.module(images), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (WEIGHTS, b"cut", r"init: the export \S+ is damaged: model\.safetensors has 3 bytes instead of \d+; copy or"),
        (PREPARATION, None, r"is damaged: .*No such file"),
        (CONTENTS, b"{", r"is damaged: "),
        (CONTENTS, b'{"version": 2}', r"is an export in format 2 of another Sternum version, and this one reads"),
        (CONTENTS, b'{"version": 1}', r"is damaged: Object missing required field"),
    ],
)
def test_a_damaged_export_is_refused(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    write_export(tmp_path / "export")
    path = tmp_path / "export" / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_export(tmp_path / "export", "init")


def test_changed_bytes_and_unknown_networks_are_refused(tmp_path: Path) -> None:
    write_export(tmp_path / "export")
    contents = json.loads((tmp_path / "export" / CONTENTS).read_text())
    (tmp_path / "export" / CONTENTS).write_text(json.dumps(contents | {"network": "resnet19"}))
    with pytest.raises(UserError, match=r"init must be one of .*resnet18"):
        open_export(tmp_path / "export", "init")
    weights = bytearray((tmp_path / "export" / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (tmp_path / "export" / WEIGHTS).write_bytes(weights)
    with pytest.raises(UserError, match=r"is damaged: the SHA-256 of model\.safetensors differs; copy"):
        open_export(tmp_path / "export", "init")
