import tempfile
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from infra.errors import RunFailed, UserError
from sharding.packing.pack import PackConfig, pack


@pytest.fixture
def config(cell_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackConfig:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    url = f"memory://{tmp_path.name}/shards"
    return PackConfig("cell", cell_root, url, shorter_side_px=32, shard_size_mb=0.06, workers=1)


def stored(url: str) -> dict[str, bytes]:
    store, path = fsspec.core.url_to_fs(url)
    return {name.removeprefix(f"{path}/"): store.cat_file(name) for name in store.find(path)}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("protocol", ["memory", "local"])
def test_object_store_gets_the_bytes_of_a_local_folder_and_nothing_else(
    config: PackConfig, tmp_path: Path, protocol: str
) -> None:
    manifest = pack(replace(config, out=tmp_path / "local"))
    url = str(config.out) if protocol == "memory" else f"local://{tmp_path}/bucket/shards"
    assert pack(replace(config, out=url)) == manifest
    assert stored(url) == content(tmp_path / "local")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_pack_leaves_an_object_store_alone_when_the_same_dataset_is_there(
    config: PackConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = pack(config)
    assert pack(config) == manifest
    assert "holds this dataset already" in capsys.readouterr().err
    with pytest.raises(UserError, match="packed with seed=0, not 1"):
        pack(replace(config, seed=1))


def test_pack_goes_on_in_an_object_store_when_uploads_fail(
    config: PackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    upload = type(store).put_file
    left = iter(range(14))

    def failing(self: object, *arguments: object, **options: object) -> None:
        if next(left, None) is None:
            raise PermissionError("the token has expired")
        upload(store, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", failing)
        with pytest.raises(RunFailed, match=r"memory://.* cannot be written: PermissionError: the token has expired;"):
            pack(config)
    assert any(name.startswith(".partial/") for name in stored(str(config.out)))
    assert list((tmp_path / "temporary").iterdir()) == []
    pack(config)
    assert "images are packed already" in capsys.readouterr().err
    pack(replace(config, out=tmp_path / "local"))
    assert stored(str(config.out)) == content(tmp_path / "local")


def test_pack_leaves_no_trace_in_an_object_store_when_nothing_can_be_packed(config: PackConfig) -> None:
    for image in config.root.rglob("*.jpeg"):
        image.write_bytes(b"")
    with pytest.raises(UserError, match="60 x zero bytes"):
        pack(config)
    assert stored(str(config.out)) == {}


def test_url_is_refused_when_it_cannot_be_opened_here(config: PackConfig) -> None:
    with pytest.raises(UserError, match=r"out=floppy://a cannot be opened: Protocol not known: floppy; or choose"):
        pack(replace(config, out="floppy://a"))
