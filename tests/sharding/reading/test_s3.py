"""Tests of reading from S3: moto's server when all is well, and the fault server when it is not."""

import re
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from moto.server import ThreadedMotoServer

import sharding.reading.fetch
from infra.errors import RunFailed, UserError
from sharding.format.manifest import Manifest
from sharding.packing.download import download_tars
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from tests.support.epoch_reader import Epoch, quick_fetch, read_epoch, read_until_stopped
from tests.support.fault_server import Fault, FaultServer, first_bytes, serving
from tests.support.s3_server import BUCKET, KEY_ID, SECRET, S3Handler

LOCATION = f"s3://{BUCKET}/set"


@pytest.fixture(scope="module")
def manifest(small_shards: Path) -> Manifest:
    return read_manifest(small_shards)


@pytest.fixture(scope="module")
def undisturbed(small_shards: Path) -> Epoch:
    return read_epoch(str(small_shards), None)


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set credentials as a user does, and hide those of this machine."""
    monkeypatch.setattr(sharding.reading.fetch, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def moto_url(small_shards: Path) -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = fsspec.filesystem("s3", endpoint_url=url, key=KEY_ID, secret=SECRET, skip_instance_cache=True)
    client.mkdir(BUCKET)
    for path in small_shards.iterdir():
        client.put_file(str(path), f"{BUCKET}/set/{path.name}")
    yield url
    server.stop()


@pytest.fixture
def moto(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    return moto_url


@pytest.fixture(scope="module")
def running_server(small_shards: Path) -> Iterator[FaultServer]:
    with serving(small_shards.parent, S3Handler) as server:
        yield server


@pytest.fixture
def server(running_server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> FaultServer:
    running_server.heal()
    monkeypatch.setenv("AWS_ENDPOINT_URL", running_server.url)
    return running_server


def object_path(name: str) -> str:
    return f"/{BUCKET}/set/{name}"


def test_shards_in_s3_are_read_as_from_the_disk(moto: str, undisturbed: Epoch, tmp_path: Path) -> None:
    assert read_epoch(LOCATION, quick_fetch(tmp_path / "cache", stall_s=10)) == undisturbed


def test_missing_bucket_or_folder_is_named(moto: str, tmp_path: Path) -> None:
    for location in ("s3://no-such-bucket/set", f"s3://{BUCKET}/no-such-folder"):
        with pytest.raises(UserError, match=rf"{location}.*manifest\.json"):
            ShardSet([location], fetch=quick_fetch(tmp_path / "cache", stall_s=10))


def test_missing_shard_is_named(server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path) -> None:
    lost = manifest.shards[-1].name
    server.always(object_path(lost), Fault("status", 404))
    error, images = read_until_stopped(LOCATION, quick_fetch(tmp_path / "cache", stall_s=10))
    assert isinstance(error, RunFailed)
    assert re.search(rf"{LOCATION}/{lost} .*not found", str(error))
    assert images == undisturbed.images[: len(images)]


def test_wrong_credentials_are_named_and_not_shown(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFNOBODY")
    error, _ = read_until_stopped(LOCATION, quick_fetch(tmp_path / "cache", stall_s=10))
    assert re.search(rf"{LOCATION}/manifest\.json .*credentials", str(error))
    assert SECRET not in str(error)
    assert len(server.requests) <= 2  # repeating the request would not help


def test_missing_credentials_are_named(server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error, _ = read_until_stopped(LOCATION, quick_fetch(tmp_path / "cache", stall_s=10))
    assert re.search(rf"{LOCATION}/manifest\.json .*[Cc]redentials", str(error))


TEMPORARY = {
    "SlowDown": [Fault("status", 503)] * 2,
    "InternalError": [Fault("status", 500)],
    "reset at once": [Fault("reset at once")],
    "reset in mid-body": [Fault("reset", 5000)],
    "truncated": [Fault("cut", 5000)],
    "truncated, no Content-Length": [Fault("cut unannounced", 5000)],
    "stall": [Fault("silent", 5000)],
    "a wrong bit": [Fault("flip", 7000)],
    "too many bytes": [Fault("excess", 100)],
}


def test_temporary_faults_of_s3_change_nothing(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    paths = {name: object_path(shard.name) for name, shard in zip(TEMPORARY, manifest.shards, strict=False)}
    assert len(paths) == len(TEMPORARY)  # each shard meets another fault
    for name, path in paths.items():
        server.script(path, *TEMPORARY[name])
    assert read_epoch(LOCATION, quick_fetch(tmp_path / "cache", stall_s=3)) == undisturbed
    for name, path in paths.items():
        assert len(server.gets(path)) == len(TEMPORARY[name]) + 1, name


PERMANENT = {
    "SlowDown": (Fault("status", 503), "Service Unavailable"),
    "AccessDenied": (Fault("status", 403), "permission"),
    "stall": (Fault("silent", 100), "no answer within"),
    "truncated": (Fault("cut", 100), r"\S"),
    "wrong bytes": (Fault("flip", 7000), "sha256"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "stall" else pytest.mark.slow) for name in PERMANENT]
)
def test_permanent_fault_of_s3_stops_the_run_and_names_shard_and_reason(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path, name: str
) -> None:
    fault, reason = PERMANENT[name]
    lost = manifest.shards[-1].name
    server.always(object_path(lost), fault)
    error, images = read_until_stopped(
        LOCATION, quick_fetch(tmp_path / "cache", attempts=2, stall_s=3 if name == "stall" else 10)
    )
    assert isinstance(error, RunFailed)
    assert re.search(rf"{LOCATION}/{lost} .*({reason})", str(error)), error
    assert "\n" not in str(error)
    assert images == undisturbed.images[: len(images)]


def test_interrupted_download_continues_from_the_last_range(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.reading.location._RANGE_BYTES", 16_000)
    path = object_path(manifest.shards[0].name)
    server.script(path, None, Fault("status", 503), None)
    assert read_epoch(LOCATION, quick_fetch(tmp_path / "cache", stall_s=10)) == undisturbed
    assert first_bytes(server.gets(path))[:3] == [0, 16_000, 16_000]
    assert server.sent[path] == manifest.shards[0].size_bytes


@pytest.mark.usefixtures("moto")
def test_the_tars_of_a_bucket_are_listed_and_copied(small_shards: Path, tmp_path: Path) -> None:
    download_tars(LOCATION, tmp_path / "kept")
    tars = {path.name: path.read_bytes() for path in small_shards.glob("*.tar")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.tar")} == tars
