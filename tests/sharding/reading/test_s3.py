"""Reading from S3: against moto's server where all is well, and against one that misbehaves as it is told."""

import re
from collections.abc import Iterator
from pathlib import Path

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

import sharding.reading.fetch
from infra.errors import RunFailed, UserError
from sharding.format.manifest import Manifest
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from tests.support.epoch_reader import Epoch, quick_fetch, read_epoch, read_until_stopped
from tests.support.fault_server import Fault, FaultServer, first_bytes, serving
from tests.support.s3_server import BUCKET, KEY_ID, SECRET, S3Handler

PLACE = f"s3://{BUCKET}/set"


@pytest.fixture(scope="module")
def manifest(small_shards: Path) -> Manifest:
    return read_manifest(small_shards)


@pytest.fixture(scope="module")
def undisturbed(small_shards: Path) -> Epoch:
    return read_epoch(str(small_shards), None)


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Credentials as a user gives them, and none of this machine's."""
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
    client = boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY_ID, aws_secret_access_key=SECRET
    )
    client.create_bucket(Bucket=BUCKET)
    for path in small_shards.iterdir():
        client.upload_file(str(path), BUCKET, f"set/{path.name}")
    yield url
    client.close()
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


def test_set_in_moto_is_read_as_from_the_disk(moto: str, undisturbed: Epoch, tmp_path: Path) -> None:
    assert read_epoch(PLACE, quick_fetch(tmp_path / "cache", stall_s=10)) == undisturbed


def test_bucket_or_folder_that_moto_does_not_have_is_named(moto: str, tmp_path: Path) -> None:
    for place in ("s3://no-such-bucket/set", f"s3://{BUCKET}/no-such-folder"):
        with pytest.raises(UserError, match=rf"{place}.*manifest\.json"):
            ShardSet([place], fetch=quick_fetch(tmp_path / "cache", stall_s=10))


def test_shard_that_is_missing_is_named(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    lost = manifest.shards[-1].name
    server.always(object_path(lost), Fault("status", 404))
    error, images = read_until_stopped(PLACE, quick_fetch(tmp_path / "cache", stall_s=10))
    assert isinstance(error, RunFailed)
    assert re.search(rf"{PLACE}/{lost} .*not found", str(error))
    assert images == undisturbed.images[: len(images)]


def test_wrong_credentials_are_named_and_not_shown(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFNOBODY")
    error, _ = read_until_stopped(PLACE, quick_fetch(tmp_path / "cache", stall_s=10))
    assert re.search(rf"{PLACE}/manifest\.json .*credentials", str(error))
    assert SECRET not in str(error)
    assert len(server.requests) <= 2  # asking again would not help


def test_missing_credentials_are_named(server: FaultServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error, _ = read_until_stopped(PLACE, quick_fetch(tmp_path / "cache", stall_s=10))
    assert re.search(rf"{PLACE}/manifest\.json .*[Cc]redentials", str(error))


PASSING = {
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


def test_faults_of_s3_that_pass_leave_no_trace(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    paths = {name: object_path(shard.name) for name, shard in zip(PASSING, manifest.shards, strict=False)}
    assert len(paths) == len(PASSING)  # each shard meets another fault
    for name, path in paths.items():
        server.script(path, *PASSING[name])
    assert read_epoch(PLACE, quick_fetch(tmp_path / "cache", stall_s=3)) == undisturbed
    for name, path in paths.items():
        assert len(server.gets(path)) == len(PASSING[name]) + 1, name


LASTING = {
    "SlowDown": (Fault("status", 503), "Service Unavailable"),
    "AccessDenied": (Fault("status", 403), "permission"),
    "stall": (Fault("silent", 100), "no answer within"),
    "truncated": (Fault("cut", 100), r"\S"),
    "wrong bytes": (Fault("flip", 7000), "sha256"),
}


@pytest.mark.parametrize("name", LASTING)
def test_fault_of_s3_that_lasts_stops_the_run_and_names_shard_and_reason(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path, name: str
) -> None:
    fault, reason = LASTING[name]
    lost = manifest.shards[-1].name
    server.always(object_path(lost), fault)
    error, images = read_until_stopped(
        PLACE, quick_fetch(tmp_path / "cache", attempts=2, stall_s=3 if name == "stall" else 10)
    )
    assert isinstance(error, RunFailed)
    assert re.search(rf"{PLACE}/{lost} .*({reason})", str(error)), error
    assert "\n" not in str(error)
    assert images == undisturbed.images[: len(images)]


def test_large_object_goes_on_from_the_part_that_came(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharding.reading.location._RANGE_BYTES", 16_000)
    path = object_path(manifest.shards[0].name)
    server.script(path, None, Fault("status", 503), None)
    assert read_epoch(PLACE, quick_fetch(tmp_path / "cache", stall_s=10)) == undisturbed
    assert first_bytes(server.gets(path))[:3] == [0, 16_000, 16_000]
    assert server.sent[path] == manifest.shards[0].size_bytes
