import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from infra.errors import RunFailed, UserError
from sharding.reading.fetch import FetchConfig
from sharding.reading.location import (
    FetchFailed,
    LocalFolder,
    RemoteFolder,
    StoreFolder,
    WebFolder,
    open_location,
    without_credentials,
)
from sharding.reading.manifests import read_manifest
from tests.support.fault_server import Fault, FaultHandler, FaultServer, first_bytes, serving

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(CONTENT)
    with serving(tmp_path) as running:
        yield running


def web(url: str) -> WebFolder:
    found = open_location(url)
    assert isinstance(found, WebFolder)
    return found


def read(remote: RemoteFolder, name: str, start: int = 0) -> tuple[int, bytes]:
    body = remote.open(name, start, timeout_s=10)
    with closing(body.chunks):
        return body.start, b"".join(body.chunks)


@pytest.mark.parametrize(
    "place",
    ["pipe:cat shards.tar", "hdfs://name/shards", "ftp://server/x", "simplecache::s3://b/x", "memory://x", "python:x"],
)
def test_place_of_unknown_scheme_is_refused_with_what_is_known(place: str) -> None:
    with pytest.raises(
        UserError, match=r"is not where shards can be read from; .* URL of file, http, https, s3 or gs$"
    ):
        open_location(place)


@pytest.mark.parametrize("place", ["http:server/x", "s3:/bucket/x", "file:x"])
def test_url_without_two_slashes_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="with two slashes"):
        open_location(place)


@pytest.mark.parametrize("place", ["http:///x", "http://server:port/x", "http://[::1/x", "s3://"])
def test_url_that_names_nothing_is_refused(place: str) -> None:
    with pytest.raises(UserError, match=r"names no (server|bucket)"):
        open_location(place)


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("shards/cell", "shards/cell"),
        (Path("shards/cell"), "shards/cell"),
        ("./odd:name", "odd:name"),
        (Path("odd:name"), "odd:name"),
        ("file:///data/two%20words", "/data/two words"),
        ("file://localhost/data", "/data"),
    ],
)
def test_local_folder_is_found_however_it_is_written(place: str | Path, path: str) -> None:
    found = open_location(place)
    assert isinstance(found, LocalFolder)
    assert found.path == Path(path)


def test_folder_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match="another machine"):
        open_location("file://elsewhere/data")


def test_name_of_a_place_holds_nothing_secret() -> None:
    assert without_credentials("https://anna:secret@server:8080/a/b/?token=secret#secret") == "https://server:8080/a/b"
    assert without_credentials("https://server/a@b") == "https://server/a@b"
    assert without_credentials(Path("a?b")) == "a?b"


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_store_without_its_package_is_refused_and_says_how_to_get_it(scheme: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from sharding.reading.location import source\n"
        "from infra.errors import UserError\n"
        f"try: source('{scheme}://bucket/x')\n"
        "except UserError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == f"{scheme}://bucket/x needs the package {package}; install it: pip install {package}\n"


def test_store_with_credentials_in_its_url_is_refused_without_naming_them() -> None:
    with pytest.raises(UserError, match=r"^s3://bucket/x is given with user") as caught:
        open_location("s3://key:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_web_gives_a_file_from_any_byte(server: FaultServer) -> None:
    remote = web(f"{server.url}/set/")
    assert read(remote, "a.tar") == (0, CONTENT)
    assert read(remote, "a.tar", 1000) == (1000, CONTENT[1000:])
    assert first_bytes(server.gets("/set/a.tar")) == [0, 1000]


def test_web_says_when_the_server_ignores_the_range(server: FaultServer) -> None:
    server.script("/set/a.tar", Fault("ignore range"))
    assert read(web(f"{server.url}/set"), "a.tar", 1000) == (0, CONTENT)


def test_web_refuses_another_range_than_it_asked_for(server: FaultServer) -> None:
    server.script("/set/a.tar", Fault("mislabel range"))
    with pytest.raises(FetchFailed, match="another range") as caught:
        read(web(f"{server.url}/set"), "a.tar", 1000)
    assert caught.value.from_zero
    assert not caught.value.is_final


def test_web_keeps_what_came_before_a_body_breaks_off(server: FaultServer) -> None:
    server.script("/set/a.tar", Fault("cut", 5000))
    got = b""
    body = web(f"{server.url}/set").open("a.tar", 0, 10)
    with closing(body.chunks), pytest.raises(FetchFailed, match="the answer broke off"):
        for chunk in body.chunks:
            got += chunk
    assert got == CONTENT[:5000]


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(401, True), (403, True), (404, True), (410, True), (429, False), (500, False), (503, False)],
)
def test_web_tells_what_may_pass_from_what_is_final(server: FaultServer, status: int, is_final: bool) -> None:
    server.script("/set/a.tar", Fault("status", status))
    with pytest.raises(FetchFailed, match=rf"^{status} ") as caught:
        read(web(f"{server.url}/set"), "a.tar")
    assert caught.value.is_final is is_final


def test_web_reads_how_long_a_server_asks_to_wait(server: FaultServer) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    waits = []
    for value in ("7", date, "soon"):
        server.script("/set/a.tar", Fault("status", 503, value))
        with pytest.raises(FetchFailed) as caught:
            read(web(f"{server.url}/set"), "a.tar")
        waits.append(caught.value.wait_s)
    assert waits[0] == 7
    assert waits[1] is not None
    assert 0 < waits[1] <= 60
    assert waits[2] is None


def test_credentials_of_the_url_are_used_and_never_named(server: FaultServer) -> None:
    url = f"{server.url.replace('//', '//anna:secret@')}/set?token=secret"
    assert read(web(url), "a.tar") == (0, CONTENT)
    with pytest.raises(UserError, match="404 Not Found") as missing:
        read_manifest(url)
    server.shutdown()
    server.server_close()
    with pytest.raises(RunFailed, match="Connection refused") as refused:
        read_manifest(url, FetchConfig(attempts=1))
    for caught in (missing, refused):
        assert f"{server.url}/set/manifest.json cannot be downloaded" in str(caught.value)
        assert "secret" not in str(caught.value)


def test_manifest_cut_without_a_sign_is_asked_for_again(server: FaultServer, tmp_path: Path) -> None:
    manifest = {"version": 1, "dataset": "cell", "made_by": "test", "options": {}, "samples": 0, "patients": 0}
    manifest |= {"pixel_mean": 0.5, "pixel_std": 0.2, "shards": [], "rejected": []}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    server.script("/set/manifest.json", Fault("cut unannounced", 30))
    assert read_manifest(f"{server.url}/set").dataset == "cell"
    (tmp_path / "set" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        read_manifest(f"{server.url}/set")


class GoogleHandler(FaultHandler):
    """As much of Google's JSON interface as a reader needs: facts and content of an object."""

    def file(self, path: str) -> Path | None:
        return super().file(unquote(path).partition("/o/")[2])

    def _answer(self) -> None:
        address = urlsplit(self.path)
        found = self.file(address.path)
        if found is None or address.query == "alt=media":
            super()._answer()
        else:
            facts = {"name": found.name, "bucket": "bucket", "size": str(found.stat().st_size)}
            self.send_text(200, json.dumps(facts).encode(), **{"Content-Type": "application/json"})


def test_google_store_gives_a_file_from_any_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = CONTENT * 500  # more than one range
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(content)
    with serving(tmp_path, GoogleHandler) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        remote = open_location("gs://bucket/set")
        assert isinstance(remote, StoreFolder)
        assert remote.name == "gs://bucket/set"
        assert read(remote, "a.tar") == (0, content)
        assert read(remote, "a.tar", 5000) == (5000, content[5000:])
        with pytest.raises(FetchFailed, match=r"^not found$") as caught:
            read(remote, "b.tar")
        assert caught.value.is_final
