"""Exports of random networks, without a model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.export.folder import VERSION, Contents, Packing, Preparation
from ssl_core.checkpoints.export.write import write_contents, write_forms
from ssl_core.model.architectures import Network, build_network

SIZE_PX: Final = 32


def write_export(
    folder: Path, name: str = "timm/test_vit", channels: int = 1, ancestors: Sequence[Ancestor] = ()
) -> Network:
    """Write an export of a random network; return the network, for one channel."""
    network = build_network(name, SIZE_PX)
    network.module.eval()
    preparation = Preparation(
        SIZE_PX,
        channels,
        mean=0.5,
        std=0.25,
        fit="pad",
        mirrored=False,
        antialias=False,
        packing=[Packing("cell", 320, "jpeg", 90, False)],
    )
    folder.mkdir()
    write_forms(folder, network, preparation, onnx=False, what=f"channels={channels}")
    contents = Contents(
        VERSION,
        sternum="-",
        network=name,
        channels=channels,
        feature_size=network.feature_size,
        run="run",
        step=7,
        epoch=0.5,
        checkpoint_sha256="0" * 64,
        ancestors=[*ancestors],
    )
    write_contents(folder, contents)
    return network
