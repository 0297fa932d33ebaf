"""Tests of the folders that shards are read from: local, of a web server, of an object store."""

import json
import subprocess
import sys
from base64 import b64encode
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
)
from sharding.reading.manifests import read_manifest
from tests.support.certificate import write_certificate
from tests.support.fault_server import Fault, FaultHandler, FaultServer, first_bytes, serving

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.tar").write_bytes(CONTENT)
    with serving(tmp_path) as running:
        yield running


def web(url: str) -> WebFolder:
    folder = open_location(url)
    assert isinstance(folder, WebFolder)
    return folder


def read(remote: RemoteFolder, name: str, start: int = 0) -> tuple[int, bytes]:
    body = remote.open(name, start, timeout_s=10, left_s=60)
    with closing(body.chunks):
        return body.start, b"".join(body.chunks)


@pytest.mark.parametrize(
    "url",
    ["pipe:cat shards.tar", "hdfs://name/shards", "ftp://server/x", "simplecache::s3://b/x", "memory://x", "python:x"],
)
def test_url_of_another_scheme_is_refused_and_the_others_are_named(url: str) -> None:
    with pytest.raises(UserError, match=r"is not a scheme .*; use one of http, https, s3, gs, file, or write \./"):
        open_location(url)


@pytest.mark.parametrize("url", ["http:server/x", "s3:/bucket/x", "file:x"])
def test_url_without_two_slashes_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="with two slashes"):
        open_location(url)


@pytest.mark.parametrize("url", ["http:///x", "http://server:port/x", "http://[::1/x", "s3://", "s3://key:secret/x"])
def test_url_without_a_server_or_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"names no (server|bucket)"):
        open_location(url)


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("shards/cell", "shards/cell"),
        (Path("shards/cell"), "shards/cell"),
        ("./odd:name", "odd:name"),
        (Path("odd:name"), "odd:name"),
        ("file:///data/two%20words", "/data/two words"),
        ("file://localhost/data", "/data"),
    ],
)
def test_local_folder_may_be_a_path_or_a_url(location: str | Path, path: str) -> None:
    folder = open_location(location)
    assert isinstance(folder, LocalFolder)
    assert folder.path == Path(path)


def test_folder_of_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match="is not on this machine"):
        open_location("file://elsewhere/data")


@pytest.mark.parametrize(("scheme", "package", "extra"), [("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")])
def test_store_without_its_package_names_the_extra(scheme: str, package: str, extra: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from sharding.reading.location import open_location\n"
        "from infra.errors import UserError\n"
        f"try: open_location('{scheme}://bucket/x')\n"
        "except UserError as error: print(error)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"{scheme}://bucket/x needs {package}, which is not installed")
    assert f'pip install "sternum[{extra}]"' in output


def test_credentials_in_a_url_are_refused(server: FaultServer) -> None:
    for url in (
        "s3://key:secret@bucket/x",
        f"{server.url.replace('//', '//anna:secret@')}/set",
        f"{server.url}/set?t=1",
    ):
        with pytest.raises(UserError, match=r"must not contain a user, a password, a query or a fragment; use ~/\."):
            open_location(url)
    assert not server.requests


class LoginHandler(FaultHandler):
    """Answers only to anna, whose password is secret."""

    def _answer(self) -> None:
        if self.headers.get("Authorization") == f"Basic {b64encode(b'anna:secret').decode()}":
            super()._answer()
        else:
            self.send_text(401, b"")


def test_credentials_come_from_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    netrc = tmp_path / "netrc"
    with serving(tmp_path, LoginHandler) as server:
        for password in ("secret", "wrong"):
            netrc.write_text(f"machine 127.0.0.1 login anna password {password}")
            monkeypatch.setenv("NETRC", str(netrc))
            if password == "secret":
                assert read(web(server.url), "a.tar") == (0, CONTENT)
                continue
            with pytest.raises(FetchFailed, match=r"^401 Unauthorized; check the credentials \(~/\.netrc\)$"):
                read(web(server.url), "a.tar")


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a password for each name of this machine."""
    entries = [f"machine {host} login anna password secret" for host in ("127.0.0.1", "localhost")]
    (tmp_path / "netrc").write_text("\n".join(entries))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def sent_credentials(server: FaultServer) -> list[bool]:
    return [request.authorization is not None for request in server.requests]


@pytest.mark.usefixtures("netrc")
def test_only_the_server_that_the_user_named_gets_credentials(server: FaultServer, tmp_path: Path) -> None:
    with serving(tmp_path / "set") as other:
        for host in ("127.0.0.1", "localhost"):
            address = f"http://{host}:{other.server_port}/a.tar"
            server.always("/a.tar", Fault("redirect", value=address))
            assert read(web(server.url), "a.tar") == (0, CONTENT)
        server.always("/a.tar", Fault("redirect", value="/set/a.tar"))
        assert read(web(server.url), "a.tar") == (0, CONTENT)
        assert sent_credentials(server) == [True] * 4
        assert sent_credentials(other) == [False] * 2


@pytest.mark.usefixtures("netrc")
def test_redirection_from_https_to_http_is_refused(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = tmp_path / "certificate.pem"
    write_certificate(certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with serving(tmp_path / "set", certificate=certificate) as encrypted:
        server.always("/up", Fault("redirect", value=f"{encrypted.url}/a.tar"))
        assert read(web(encrypted.url), "a.tar") == read(web(server.url), "up") == (0, CONTENT)
        assert sent_credentials(server) == [True]
        for target in (f"{server.url}/set/a.tar", f"http:{server.url[5:]}/set/a.tar"):
            encrypted.always("/down", Fault("redirect", value=target))
            with pytest.raises(FetchFailed, match=r"^the server redirects from https to http, ") as caught:
                read(web(encrypted.url), "down")
            assert caught.value.is_final
        server.always("/up", Fault("redirect", value=f"{encrypted.url}/down"))
        with pytest.raises(FetchFailed, match=r"^the server redirects from https to http, "):
            read(web(server.url), "up")
    assert [request.path for request in server.requests] == ["/up", "/up"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "pipe:ls", "data:,x"])
def test_redirection_away_from_the_web_is_refused(server: FaultServer, target: str) -> None:
    server.always("/set/a.tar", Fault("redirect", value=target))
    with pytest.raises(FetchFailed, match="not on the web") as caught:
        read(web(f"{server.url}/set"), "a.tar")
    assert caught.value.is_final


@pytest.mark.parametrize("target", ["http://[::1/x", "http://server:99999/x", "http://server:port/x", "\xff\xfe"])
def test_redirection_to_what_is_no_url_is_refused(server: FaultServer, target: str) -> None:
    server.always("/set/a.tar", Fault("redirect", value=target))
    with pytest.raises(FetchFailed) as caught:
        read(web(f"{server.url}/set"), "a.tar")
    assert caught.value.is_final


def test_signature_of_a_redirection_is_not_shown(server: FaultServer) -> None:
    server.always("/set/a.tar", Fault("redirect", value=f"{server.url}/gone?X-Amz-Signature=secret"))
    with pytest.raises(FetchFailed) as caught:
        read(web(f"{server.url}/set"), "a.tar")
    assert "secret" not in str(caught.value)


def test_web_gives_a_file_from_any_byte(server: FaultServer) -> None:
    remote = web(f"{server.url}/set/")
    assert read(remote, "a.tar") == (0, CONTENT)
    assert read(remote, "a.tar", 1000) == (1000, CONTENT[1000:])
    assert first_bytes(server.gets("/set/a.tar")) == [0, 1000]


def test_web_starts_from_zero_if_the_server_ignores_the_range(server: FaultServer) -> None:
    server.script("/set/a.tar", Fault("ignore range"))
    assert read(web(f"{server.url}/set"), "a.tar", 1000) == (0, CONTENT)


def test_web_refuses_a_range_that_it_did_not_ask_for(server: FaultServer) -> None:
    server.script("/set/a.tar", Fault("mislabel range"))
    with pytest.raises(FetchFailed, match="does not start at byte 1000") as caught:
        read(web(f"{server.url}/set"), "a.tar", 1000)
    assert caught.value.from_zero
    assert not caught.value.is_final


def test_web_keeps_what_came_before_a_body_breaks_off(server: FaultServer) -> None:
    server.script("/set/a.tar", Fault("cut", 5000))
    received = b""
    body = web(f"{server.url}/set").open("a.tar", 0, timeout_s=10, left_s=60)
    with closing(body.chunks), pytest.raises(FetchFailed, match="the response broke off"):
        for chunk in body.chunks:
            received += chunk
    assert received == CONTENT[:5000]


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(401, True), (403, True), (404, True), (410, True), (429, False), (500, False), (503, False)],
)
def test_web_knows_which_errors_are_temporary(server: FaultServer, status: int, is_final: bool) -> None:
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


def test_a_shard_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    shard = tmp_path / "cell-0.tar"
    shard.touch()
    with pytest.raises(UserError, match=rf"^{shard} is a file; name the folder that holds it: {tmp_path}$"):
        read_manifest(shard)


def test_missing_manifest_and_unreachable_server_are_named(server: FaultServer) -> None:
    with pytest.raises(UserError, match=rf"^{server.url}/set/manifest\.json .*: 404 Not Found"):
        read_manifest(f"{server.url}/set/")
    server.shutdown()
    server.server_close()
    with pytest.raises(RunFailed, match=rf"^{server.url}/set/manifest\.json .*: Connection refused"):
        read_manifest(f"{server.url}/set/", FetchConfig(attempts=1))


def test_manifest_that_was_cut_silently_is_fetched_again(server: FaultServer, tmp_path: Path) -> None:
    manifest = {"version": 1, "dataset": "cell", "made_by": "test", "options": {}, "samples": 0, "patients": 0}
    manifest |= {"pixel_mean": 0.5, "pixel_std": 0.2, "shards": [], "rejected": []}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    server.script("/set/manifest.json", Fault("cut unannounced", 30))
    assert read_manifest(f"{server.url}/set").dataset == "cell"
    (tmp_path / "set" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        read_manifest(f"{server.url}/set")


class GoogleHandler(FaultHandler):
    """The part of Google's JSON interface that a reader needs: facts and content of an object."""

    def file(self, path: str) -> Path | None:
        return super().file(unquote(path).partition("/o/")[2])

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path = self.file(address.path)
        if path is None or address.query == "alt=media":
            super()._answer()
        else:
            facts = {"name": path.name, "bucket": "bucket", "size": str(path.stat().st_size)}
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
