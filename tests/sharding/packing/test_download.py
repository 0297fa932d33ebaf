"""WebDataset tars at a URL: downloaded once, whole, and packed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import sharding.reading.fetch
from infra.errors import RunFailed, UserError
from launch.cli import main as sternum
from sharding.datasets.webdataset import WebdatasetOptions
from sharding.packing.download import download_tars
from sharding.packing.pack import PackConfig
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest
from tests.support.fault_server import Fault, FaultServer, serving


@pytest.fixture
def tars(small_shards: Path, tmp_path: Path) -> list[Path]:
    """Sternum's own shards, which are WebDataset tars like others, under numbers."""
    found = []
    for number, path in enumerate(sorted(small_shards.glob("*.tar"))[:3]):
        found.append(tmp_path / "served" / f"x-{number:03d}.tar")
        found[-1].parent.mkdir(exist_ok=True)
        found[-1].write_bytes(path.read_bytes())
    return found


@pytest.fixture
def server(tars: list[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    monkeypatch.setattr(sharding.reading.fetch, "_FIRST_WAIT_S", 0.01)
    with serving(tars[0].parent) as server:
        yield server


def test_tars_with_numbers_in_braces_are_downloaded_once_over_a_connection_that_breaks_and_packed(
    server: FaultServer, tars: list[Path], tmp_path: Path
) -> None:
    server.script("/x-001.tar", Fault("cut", 700), Fault("reset", 5000), Fault("status", 503), None)
    words = [
        "shard",
        "webdataset",
        f"--root={server.url}/x-{{000..002}}.tar",
        f"--webdataset.download={tmp_path / 'kept'}",
        "--webdataset.patient=patient",
        "--webdataset.labels=[none]",
        f"--out={tmp_path / 'out'}",
        "--shorter_side_px=48",
        "--workers=1",
    ]
    assert sternum(words) == 2  # no sample has this field
    words.remove("--webdataset.labels=[none]")
    assert sternum(words) == 0
    for tar in tars:
        assert (tmp_path / "kept" / tar.name).read_bytes() == tar.read_bytes()
    assert len(server.gets("/x-000.tar")) == 1
    assert [request.first_byte for request in server.gets("/x-001.tar")] == [0, 700, 5700, 5700]
    assert verify(tmp_path / "out", workers=1) == []
    assert "webdataset.download" not in read_manifest(tmp_path / "out").options


def test_a_tar_that_the_server_lacks_ends_the_download_and_keeps_those_before(
    server: FaultServer, tars: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(RunFailed, match=r"x-003\.tar cannot be downloaded: .*404"):
        download_tars(f"{server.url}/x-{{002..003}}.tar", tmp_path / "kept")
    assert [path.name for path in (tmp_path / "kept").glob("*.tar")] == ["x-002.tar"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/folder", r"a web server, which does not list its files; name the tars: .*/\{00000\.\."),
        ("http://127.0.0.1:1/{a,b}/0.tar", r"may have braces only in the names of the tars"),
        ("http://127.0.0.1:1/{0..999999999999}.tar", r"names more than 100000 tars"),
        ("http://127.0.0.1:1/{000..999}{000..999}.tar", r"names more than 100000 tars"),
    ],
)
def test_a_url_that_names_no_tars_is_refused(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        download_tars(url, tmp_path)


@pytest.mark.parametrize(
    ("dataset", "root", "download", "message"),
    [
        ("cell", "https://server/cell", None, r"root=https://server/cell must be a path on this machine, not a URL"),
        ("webdataset", "pipe:curl x", Path("kept"), r"must be a path on this machine, not a URL, except"),
        ("webdataset", "https://server/{0..9}.tar", None, r"downloaded first; .*: --download=FOLDER"),
        ("webdataset", "https://me:secret@server/0.tar", Path("kept"), r"must not contain a user"),
        ("webdataset", "raw", Path("kept"), r"download=kept is for a root that is a URL"),
    ],
)
def test_a_root_that_is_a_url_is_for_webdataset_and_needs_a_folder(
    dataset: str, root: str, download: Path | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        PackConfig(dataset, root, tmp_path, webdataset=WebdatasetOptions(download=download))
    assert "secret" not in str(raised.value)
