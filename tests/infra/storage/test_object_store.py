"""Tests of the one way to reach object stores."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from infra.errors import UserError
from infra.storage.files import SMALL_BYTES
from infra.storage.object_store import NOT_FOUND, SCHEMES, ObjectStore, StoreFailed, file_path


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SCHEMES, "memory", None)
    return f"memory://{tmp_path.name}/a" if request.param == "memory" else f"{tmp_path.as_uri()}/a%20b"


def test_a_store_holds_what_was_written(url: str, tmp_path: Path) -> None:
    store, file = ObjectStore(url), tmp_path / "file"
    file.write_bytes(b"0123456789")
    assert store.sizes() == {}
    assert store.read("x/one") is None
    store.put(file, "x/one")
    store.put_bytes(b"two", "two")
    assert ObjectStore(f"{url}/").sizes() == {"x": 0, "two": 3}
    assert store.folders() == ["x"]
    assert store.sizes("x") == {"one": 10}
    assert store.sizes("two") == {}  # a file is not a folder
    assert store.read("two") == b"two"
    assert store.exists("x/one")
    assert not store.exists("x/two")
    assert store.size("x/one", timeout_s=1) == 10
    assert store.read_range("x/one", 2, 5, timeout_s=1) == b"234"
    store.get("x/one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    store.remove("two")
    store.remove("two")
    store.remove("x")
    assert store.sizes() == {}
    store.remove()


def test_a_missing_file_is_final(url: str) -> None:
    store = ObjectStore(url, "out")
    for read in (lambda: store.size("x", 1), lambda: store.read_range("x", 0, 1, 1), lambda: store.get("x", Path("x"))):
        with pytest.raises(StoreFailed, match=r"^out=.* cannot be read: not found; check the address") as error:
            read()
        assert (error.value.reason, error.value.is_final) == (NOT_FOUND, True)


@pytest.mark.parametrize(
    ("raised", "reason", "is_final"),
    [
        (PermissionError("Forbidden"), r"no permission \(PermissionError: Forbidden\)", True),
        (TimeoutError("too slow"), "no answer within 7 s", False),
        (ConnectionError("reset by https://anna:secret@proxy"), "ConnectionError: reset by https://proxy", False),
        (type("NoCredentialsError", (Exception,), {})("none"), "NoCredentialsError: none", True),
        (ValueError(), "ValueError", False),
    ],
)
def test_a_failed_request_names_the_reason_and_nothing_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, reason: str, is_final: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    store = ObjectStore(tmp_path.as_uri(), hint="try again")
    monkeypatch.setattr(type(store._client), "info", fail)
    with pytest.raises(StoreFailed, match=rf"^file:///.* cannot be read: {reason}; try again$") as error:
        store.size("x", timeout_s=7)
    assert error.value.is_final is is_final


def test_a_full_local_disk_is_not_an_error_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ObjectStore(tmp_path.as_uri())
    monkeypatch.setattr(type(store._client), "get_file", fail)
    with pytest.raises(OSError, match="No space left"):
        store.get("x", tmp_path / "x")


def test_a_listing_that_fails_is_not_an_empty_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    store = ObjectStore(url)
    monkeypatch.setattr(type(store._client), "ls", fail)
    with pytest.raises(StoreFailed, match="cannot be listed: no permission"):
        store.sizes()


@pytest.mark.parametrize(
    "url", ["a/b", "/a/b", "memory://a", "http://server/a", "s3:/bucket/a", "s4://bucket/a", "simplecache::s3://a/b"]
)
def test_another_url_is_refused_and_the_schemes_are_named(url: str) -> None:
    with pytest.raises(UserError, match=r"^out=.* must begin with s3://, gs:// or file://$"):
        ObjectStore(url, "out")


@pytest.mark.parametrize("url", ["s3://", "gs:///a", "s3://key:secret/a"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"names no bucket; write (s3|gs)://BUCKET/FOLDER$") as error:
        ObjectStore(url)
    assert "secret" not in str(error.value)


def test_a_file_url_names_a_local_path() -> None:
    assert file_path("file:///a/two%20words") == Path("/a/two words")
    assert file_path("file://localhost/a") == Path("/a")
    for url in ("file://server/a", "file:a"):
        with pytest.raises(UserError, match="is not on this machine; write file:///FOLDER"):
            file_path(url)


def test_clients_are_not_shared_and_cache_no_listing(url: str) -> None:
    first, second = ObjectStore(url), ObjectStore(url)
    assert first._client is not second._client
    assert first.sizes() == {}
    second.put_bytes(b"x", "x")
    assert first.sizes() == {"x": 1}


def test_a_reader_of_s3_repeats_nothing_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    configured: dict[str, Any] = {"config_kwargs": {"max_pool_connections": 7, "retries": {"total_max_attempts": 9}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", configured)
    client = ObjectStore("s3://bucket/a", retries=False)._client
    assert client.retries == 1
    assert client.config_kwargs == {"max_pool_connections": 7, "retries": {"total_max_attempts": 1}}


def test_fsspec_is_imported_only_when_a_store_is_opened() -> None:
    code = "import sys, infra.storage.object_store; print('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_file_larger_than_any_small_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(SMALL_BYTES + 1)
    with pytest.raises(StoreFailed, match=r"manifest\.json has 268435457 bytes, more than 256 MiB"):
        ObjectStore(tmp_path.as_uri()).read("manifest.json")
