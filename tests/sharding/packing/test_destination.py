"""Tests of packing into an object store."""

import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import fsspec
import pytest

from infra.errors import RunFailed, UserError
from infra.storage.object_store import SCHEMES
from infra.urls import Location
from sharding.packing.destination import open_destination
from sharding.packing.pack import PackConfig, pack


@pytest.fixture
def config(cell_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackConfig:
    """A small dataset that is packed into an object store in memory."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setitem(SCHEMES, "memory", None)
    url = f"memory://{tmp_path.name}/shards"
    return PackConfig("cell", cell_root, url, shorter_side_px=32, shard_size_mb=0.06, workers=1)


def stored(url: str) -> dict[str, bytes]:
    """Return the content of every file in a store, by its path below the URL."""
    store, path = fsspec.core.url_to_fs(url)
    return {name.removeprefix(f"{path}/"): store.cat_file(name) for name in store.find(path)}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_object_store_gets_the_same_files_as_a_local_folder(config: PackConfig, tmp_path: Path) -> None:
    manifest = pack(replace(config, out=tmp_path / "local"))
    assert pack(config) == manifest
    assert stored(str(config.out)) == content(tmp_path / "local")
    assert list((tmp_path / "temporary").iterdir()) == []


def test_file_url_is_a_local_folder(config: PackConfig, tmp_path: Path) -> None:
    manifest = pack(replace(config, out=tmp_path / "local"))
    assert pack(replace(config, out=f"file://{tmp_path}/two%20words")) == manifest
    assert content(tmp_path / "two words") == content(tmp_path / "local")
    with pytest.raises(UserError, match=r"file://elsewhere/data is not on this machine; write file:///FOLDER"):
        pack(replace(config, out="file://elsewhere/data"))


def test_pack_changes_nothing_if_the_store_holds_the_same_dataset(
    config: PackConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = pack(config)
    assert pack(config) == manifest
    assert "holds this dataset already" in capsys.readouterr().err
    with pytest.raises(UserError, match="packed with seed=0, not 1"):
        pack(replace(config, seed=1))


def test_pack_resumes_in_an_object_store_after_failed_uploads(
    config: PackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = fsspec.filesystem("memory")
    upload = type(store).put_file
    left = iter(range(14))

    def failing(self: Any, *arguments: Any, **options: Any) -> None:
        if next(left, None) is None:
            raise PermissionError("the token has expired")
        upload(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", failing)
        message = r"^out=memory://.* cannot be written: no permission \(PermissionError: the token has expired\); check"
        with pytest.raises(RunFailed, match=message):
            pack(config)
    assert any(name.startswith(".partial/") for name in stored(str(config.out)))
    assert list((tmp_path / "temporary").iterdir()) == []
    pack(config)
    assert "images are packed already" in capsys.readouterr().err
    pack(replace(config, out=tmp_path / "local"))
    assert stored(str(config.out)) == content(tmp_path / "local")


def test_pack_leaves_nothing_in_an_object_store_if_no_image_can_be_packed(config: PackConfig) -> None:
    for image in config.source.rglob("*.jpeg"):
        image.write_bytes(b"")
    with pytest.raises(UserError, match="60 x zero bytes"):
        pack(config)
    assert stored(str(config.out)) == {}


def test_working_folder_that_another_user_may_have_made_is_refused(config: PackConfig, tmp_path: Path) -> None:
    """Its name is no secret, so another user can make it first and read or replace every shard in it."""
    working = open_destination(config.out).staging.parent
    assert working.parent == tmp_path / "temporary"
    working.mkdir()
    working.chmod(0o777)
    with pytest.raises(UserError, match=rf"^{working} must be a folder that belongs to you alone.*TMPDIR"):
        pack(config)
    assert list(working.iterdir()) == []
    assert stored(str(config.out)) == {}


def test_every_name_of_a_destination_has_the_same_lock(config: PackConfig, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "link").symlink_to("shards")
    names: list[Location] = [tmp_path / "shards", f"{tmp_path}/./shards/", f"file://{tmp_path}/shards"]
    names += [tmp_path / "link", f"file://localhost{tmp_path}/link"]
    urls: list[Location] = [str(config.out), f"{config.out}/", str(config.out).replace("memory", "MEMORY")]
    for group in (names, urls):
        for first, second in product(group, group):
            with (
                open_destination(first).locked(),
                pytest.raises(UserError, match="is in use by another process that is packing into"),
                open_destination(second).locked(),
            ):
                pass


@pytest.mark.parametrize("url", ["floppy://a", "https://server/a", "local:///a", "s3:/bucket/a"])
def test_url_that_is_not_an_object_store_is_refused(config: PackConfig, url: str) -> None:
    with pytest.raises(UserError, match=r"^out=.* must begin with s3://, gs:// or file://$"):
        pack(replace(config, out=url))


def test_a_packing_is_refused_when_another_one_has_begun_in_its_store_and_removes_nothing(
    config: PackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store has no lock: both find it empty, and both write their note; the second note counts."""
    store = fsspec.filesystem("memory")
    upload = type(store).put_file

    def overtaken(self: Any, file: str, name: str, **options: Any) -> None:
        upload(self, file, name, **options)
        if name.endswith("/job.json"):
            self.pipe_file(name, self.cat_file(name).replace(b'"seed": 0', b'"seed": 1'))

    with monkeypatch.context() as patch:
        patch.setattr(type(store), "put_file", overtaken)
        message = r"now holds an unfinished packing of dataset 'cell' packed with seed=1, not 0; choose another folder"
        with pytest.raises(UserError, match=message):
            pack(config)
    with pytest.raises(UserError, match="holds an unfinished packing of"):
        pack(config)
    assert stored(str(config.out)).keys() == {".partial/job.json"}
    pack(replace(config, seed=1))
    pack(replace(config, seed=1, out=tmp_path / "local"))
    assert stored(str(config.out)) == content(tmp_path / "local")


def test_a_damaged_note_is_one_line(config: PackConfig) -> None:
    store, path = fsspec.core.url_to_fs(str(config.out))
    for damage in (b"", b"\xff", b"{}", b'{"x": ' + b"[" * 100_000):
        store.pipe_file(f"{path}/.partial/job.json", damage)
        with pytest.raises(UserError, match=r"^\.partial/job\.json of an unfinished packing cannot be read: "):
            pack(config)
