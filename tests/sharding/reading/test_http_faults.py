"""Reading from a real HTTP server that misbehaves: the right bytes of every sample, or one clear line."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sharding.reading.fetch
from infra.errors import RunFailed, UserError
from sharding.format.manifest import Manifest
from sharding.reading.fetch import FetchConfig, Fetcher, FileSpec, PartialDownload
from sharding.reading.location import WebFolder
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import BLANK
from tests.support.epoch_reader import Epoch, quick_fetch, read_epoch, read_until, read_until_stopped, reading_process
from tests.support.fault_server import Fault, FaultServer, first_bytes, serving


@pytest.fixture(scope="module")
def manifest(small_shards: Path) -> Manifest:
    return read_manifest(small_shards)


@pytest.fixture(scope="module")
def undisturbed(small_shards: Path) -> Epoch:
    epoch = read_epoch(str(small_shards), None)
    assert epoch.valid == len(epoch.images) == read_manifest(small_shards).samples
    return epoch


@pytest.fixture(scope="module")
def running_server(small_shards: Path) -> Iterator[FaultServer]:
    with serving(small_shards.parent) as server:
        yield server


@pytest.fixture
def server(running_server: FaultServer) -> FaultServer:
    running_server.heal()
    return running_server


@pytest.fixture
def fetch(tmp_path: Path) -> FetchConfig:
    return quick_fetch(tmp_path / "cache")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.reading.fetch, "_FIRST_WAIT_S", 0.01)


# What the requests of one file begin at when it meets these faults.
PASSING = {
    "503 once": ([Fault("status", 503)], [0, 0]),
    "503 twice": ([Fault("status", 503)] * 2, [0, 0, 0]),
    "500": ([Fault("status", 500)], [0, 0]),
    "429": ([Fault("status", 429)], [0, 0]),
    "reset at once": ([Fault("reset at once")], [0, 0]),
    "reset in mid-body": ([Fault("reset", 5000)], [0, 5000]),
    "truncated, Content-Length": ([Fault("cut", 5000)], [0, 5000]),
    "truncated, no Content-Length": ([Fault("cut unannounced", 5000)], [0, 5000]),
    "truncated twice": ([Fault("cut", 5000), Fault("reset", 3000)], [0, 5000, 8000]),
    "no Content-Length": ([Fault("unannounced")], [0]),
    "stall in mid-body": ([Fault("silent", 5000)], [0, 5000]),
    "stall at once": ([Fault("silent", 0)], [0, 0]),
    "a wrong bit": ([Fault("flip", 7000)], [0, 0]),
    "too many bytes": ([Fault("excess", 100)], [0, 0]),
    "Range ignored": ([Fault("cut", 5000), Fault("ignore range")], [0, 5000]),
    "another range": ([Fault("cut", 5000), Fault("shift range", 512)], [0, 5000, 0]),
    "wrong Content-Range": ([Fault("cut", 5000), Fault("mislabel range")], [0, 5000, 0]),
    "a wrong bit before the cut": ([Fault("flip", 10), Fault("cut", 5000)], [0, 0, 5000]),
}


def test_passing_faults_cost_only_the_missing_bytes(
    server: FaultServer, fetch: FetchConfig, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    for number, start in enumerate(range(0, len(PASSING), len(manifest.shards))):
        names = list(PASSING)[start : start + len(manifest.shards)]
        shard_of = dict(zip(names, manifest.shards, strict=False))  # each shard meets another fault
        for name, shard in shard_of.items():
            server.script(f"/set/{shard.name}", *PASSING[name][0])
        assert read_epoch(f"{server.url}/set", replace(fetch, cache_folder=tmp_path / str(number))) == undisturbed
        begins = {name: first_bytes(server.gets(f"/set/{shard.name}")) for name, shard in shard_of.items()}
        assert begins == {name: PASSING[name][1] for name in names}
        server.heal()


def test_redirected_shard_is_read_from_where_it_is(
    server: FaultServer, fetch: FetchConfig, manifest: Manifest, small_shards: Path, undisturbed: Epoch, tmp_path: Path
) -> None:
    with serving(small_shards) as other:
        for shard in manifest.shards:
            server.always(f"/set/{shard.name}", Fault("redirect", value=f"{other.url}/{shard.name}"))
        assert read_epoch(f"{server.url}/set", fetch) == undisturbed


def test_server_that_asks_to_wait_is_not_asked_sooner(
    server: FaultServer, fetch: FetchConfig, manifest: Manifest, undisturbed: Epoch
) -> None:
    path = f"/set/{manifest.shards[0].name}"
    server.script(path, Fault("status", 429, "1"), Fault("status", 503, "1"))
    assert read_epoch(f"{server.url}/set", fetch) == undisturbed
    arrived_s = [request.arrived_s for request in server.gets(path)]
    assert all(after - before >= 1 for before, after in pairwise(arrived_s))


LASTING = {
    "404": (Fault("status", 404), "not found|404"),
    "403": (Fault("status", 403), "403"),
    "503": (Fault("status", 503), "503"),
    "reset": (Fault("reset at once"), "[Rr]eset"),
    "truncated": (Fault("cut unannounced", 0), "0 (of|bytes)"),
    "stall": (Fault("silent", 100), "no byte|not all bytes arrived in time"),
    "trickle": (Fault("trickle", 100), "not all bytes arrived in time|total_s=2.0 is used up"),
    "wrong bytes": (Fault("flip", 7000), "sha256"),
    "too many bytes": (Fault("excess", 9), "bytes"),
    "a page in its place": (Fault("status", 200), "bytes"),
    "redirected in circles": (Fault("redirect", value="/set/again"), "redirect|Redirect"),
}


@pytest.mark.parametrize("name", LASTING)
def test_fault_that_lasts_stops_the_run_and_names_shard_and_reason(
    server: FaultServer, fetch: FetchConfig, manifest: Manifest, undisturbed: Epoch, name: str
) -> None:
    fault, reason = LASTING[name]
    lost = manifest.shards[-1]
    server.always(f"/set/{lost.name}", fault)
    server.always("/set/again", fault)
    error, images = read_until_stopped(f"{server.url}/set", replace(fetch, total_s=2.0))
    assert isinstance(error, RunFailed)
    assert re.search(rf"{lost.name}.*({reason})", str(error)), error
    assert "\n" not in str(error)
    assert images == undisturbed.images[: len(images)]


faults = st.one_of(
    st.sampled_from([Fault("status", 503), Fault("status", 500), Fault("reset at once"), Fault("ignore range")]),
    st.builds(Fault, st.sampled_from(["cut", "cut unannounced", "reset", "flip", "excess"]), st.integers(0, 25_000)),
    st.builds(Fault, st.sampled_from(["shift range", "mislabel range"]), st.integers(1, 2000)),
    st.builds(Fault, st.just("silent"), st.integers(0, 10_000)),
    st.none(),
)


scripts = st.lists(st.lists(faults, max_size=3), min_size=24, max_size=24)


def check_any_faults(
    server: FaultServer,
    manifest: Manifest,
    undisturbed: Epoch,
    cache_folder: Path,
    scripts: list[list[Fault | None]],
    attempts: int,
) -> None:
    server.heal()
    fetch = quick_fetch(cache_folder, stall_s=0.3, attempts=attempts)
    names = [*(shard.name for shard in manifest.shards), *(shard.index_name for shard in manifest.shards)]
    for name, script in zip(names, scripts, strict=False):
        server.script(f"/set/{name}", *script)
    epoch, error = read_until(f"{server.url}/set", fetch)
    assert epoch.valid == len(epoch.images)
    if error is None:
        assert epoch == undisturbed
    else:
        assert isinstance(error, RunFailed)
        assert any(f"{server.url}/set/{name} " in str(error) for name in [*names, "manifest.json"])
        assert epoch.images == undisturbed.images[: len(epoch.images)]
    server.heal()
    assert read_epoch(f"{server.url}/set", quick_fetch(cache_folder)) == undisturbed  # what was left does no harm


@settings(max_examples=6, suppress_health_check=list(HealthCheck))
@given(scripts, st.integers(1, 5))
def test_any_faults_end_in_the_right_bytes_or_name_a_shard(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path_factory: Any, script: Any, attempts: int
) -> None:
    check_any_faults(server, manifest, undisturbed, tmp_path_factory.mktemp("any") / "cache", script, attempts)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(scripts, st.integers(1, 5))
def test_any_of_many_faults_end_in_the_right_bytes_or_name_a_shard(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path_factory: Any, script: Any, attempts: int
) -> None:
    check_any_faults(server, manifest, undisturbed, tmp_path_factory.mktemp("any") / "cache", script, attempts)


def test_manifest_is_asked_for_again_when_it_breaks_off(
    server: FaultServer, fetch: FetchConfig, undisturbed: Epoch
) -> None:
    server.script("/set/manifest.json", Fault("status", 503), Fault("cut unannounced", 100), Fault("reset", 50))
    assert read_epoch(f"{server.url}/set", fetch) == undisturbed


def test_folder_without_a_manifest_is_named(server: FaultServer, fetch: FetchConfig) -> None:
    with pytest.raises(UserError, match=rf"{server.url}/nothing.*manifest\.json"):
        ShardSet([f"{server.url}/nothing"], fetch=fetch)


def test_page_in_place_of_a_manifest_is_named(server: FaultServer, fetch: FetchConfig) -> None:
    server.always("/set/manifest.json", Fault("status", 200))
    with pytest.raises(UserError, match=rf"{server.url}/set/manifest\.json cannot be read: JSON is malformed"):
        ShardSet([f"{server.url}/set"], fetch=fetch)


def test_server_that_is_not_there_is_named(fetch: FetchConfig, small_shards: Path) -> None:
    with serving(small_shards) as gone:
        url = gone.url
    with pytest.raises((RunFailed, UserError), match=rf"{url}.*manifest\.json.*refused"):
        ShardSet([url], fetch=fetch)


@pytest.mark.parametrize("what", ["manifest", "index"])
def test_file_edited_by_hand_is_named(
    fetch: FetchConfig, manifest: Manifest, small_shards: Path, tmp_path: Path, what: str
) -> None:
    folder = Path(shutil.copytree(small_shards, tmp_path / "edited"))
    shard = manifest.shards[1]
    if what == "manifest":
        path = folder / "manifest.json"
        path.write_text(path.read_text().replace(shard.sha256, f"{0:064x}"))
    else:
        path = folder / shard.index_name
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with serving(folder) as server:
        error, _ = read_until_stopped(server.url, fetch)
    assert (shard.name if what == "manifest" else shard.index_name) in str(error)


def test_shard_is_not_fetched_again_from_the_cache(
    server: FaultServer, fetch: FetchConfig, manifest: Manifest, undisturbed: Epoch
) -> None:
    for _ in range(2):
        assert read_epoch(f"{server.url}/set", fetch) == undisturbed
    for shard in manifest.shards:
        assert len(server.gets(f"/set/{shard.name}")) == 1


def test_processes_that_share_a_cache_fetch_each_shard_once(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    processes = [reading_process(f"{server.url}/set", tmp_path / "cache") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.strip() == undisturbed.fingerprint, err
    for shard in manifest.shards:
        assert first_bytes(server.gets(f"/set/{shard.name}")) == [0]
        assert server.sent[f"/set/{shard.name}"] == shard.size_bytes


def test_next_start_goes_on_where_a_killed_one_stopped(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    for shard in manifest.shards:
        server.script(f"/set/{shard.name}", Fault("trickle", 10_000))
    killed = reading_process(f"{server.url}/set", tmp_path / "cache")
    try:
        wait_until(lambda: sum(server.sent[f"/set/{shard.name}"] >= 10_000 for shard in manifest.shards) >= 2)
        time.sleep(0.2)  # so that the bytes are on their way to the cache
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
    begun = [shard for shard in manifest.shards if server.gets(f"/set/{shard.name}")]
    server.heal()
    assert read_epoch(f"{server.url}/set", quick_fetch(tmp_path / "cache")) == undisturbed
    begins = [request.first_byte for shard in begun for request in server.gets(f"/set/{shard.name}")]
    assert any(begin >= 10_000 for begin in begins)
    assert partial_files(tmp_path / "cache") == []


def damage(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_damaged_shard_in_the_cache_is_fetched_again(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch = quick_fetch(tmp_path / "cache")
    shards = ShardSet([f"{server.url}/set"], fetch=fetch)
    for number, row, member in ((3, 1, "image"), (3, 0, "image"), (5, 0, "image"), (6, 0, "meta")):
        position = int(shards.row(number, row)[f"{member}_offset"]) + 20
        damage(tmp_path / "cache" / manifest.shards[number].sha256, position)
    server.heal()
    assert read_epoch(f"{server.url}/set", fetch) == undisturbed
    shards_again = ShardSet([f"{server.url}/set"], fetch=fetch)
    assert shards_again.metadata(6, 0) == ShardSet([server.folder / "set"]).metadata(6, 0)
    gets = [len(server.gets(f"/set/{shard.name}")) for shard in manifest.shards]
    assert gets == [1] * len(gets)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "is downloaded again" in line]
    assert len(warnings) == 3
    del shards


def test_damaged_shard_in_a_shared_cache_is_fetched_again_once(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path
) -> None:
    shards = ShardSet([f"{server.url}/set"], fetch=quick_fetch(tmp_path / "cache"))
    for number, shard in enumerate(manifest.shards):
        position = int(shards.row(number, 0)["image_offset"]) + 20
        damage(tmp_path / "cache" / shard.sha256, position)
    server.heal()
    processes = [reading_process(f"{server.url}/set", tmp_path / "cache") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert out.strip() == undisturbed.fingerprint, err
    assert [len(server.gets(f"/set/{shard.name}")) for shard in manifest.shards] == [1] * len(manifest.shards)


def test_damaged_shard_that_cannot_be_fetched_again_costs_its_damaged_samples(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch = quick_fetch(tmp_path / "cache", attempts=1)
    shards = ShardSet([f"{server.url}/set"], fetch=fetch)
    row = shards.row(3, 1)
    damage(tmp_path / "cache" / manifest.shards[3].sha256, int(row["image_offset"]) + 20)
    server.always(f"/set/{manifest.shards[3].name}", Fault("status", 503))
    epoch = read_epoch(f"{server.url}/set", fetch)
    assert [sample for sample, _ in epoch.images] == [sample for sample, _ in undisturbed.images]
    differing = [now for now, before in zip(epoch.images, undisturbed.images, strict=True) if now != before]
    assert differing == [(int(row["sample"]), BLANK.tobytes())]
    assert epoch.valid == undisturbed.valid - 1
    name = f"{server.url}/set/{manifest.shards[3].name}"
    cause = rf"its copy in the cache is damaged, and {name} cannot be downloaded: 503 .*"
    message = rf"sample 1 of {name} does not match its checksum; {cause}; it is masked in"
    assert re.search(message, capsys.readouterr().err)


def test_file_that_had_come_whole_when_its_process_ended_is_not_asked_for_again(
    server: FaultServer, fetch: FetchConfig, manifest: Manifest, small_shards: Path, tmp_path: Path
) -> None:
    shard = manifest.shards[0]
    shutil.copy(small_shards / shard.index_name, tmp_path / "came")
    wanted = FileSpec(shard.index_name, shard.index_sha256, 10_000, is_exact=False)
    with FileIO(tmp_path / "came", "r+") as file:
        Fetcher(fetch).fetch(WebFolder(f"{server.url}/set"), wanted, PartialDownload(file), threading.Event())
    assert server.requests == []
    assert (tmp_path / "came").read_bytes() == (small_shards / shard.index_name).read_bytes()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.02)


def partial_files(cache_folder: Path) -> list[Path]:
    return list(cache_folder.glob("*.partial"))


def test_cache_smaller_than_the_set_stays_within_its_limit(
    server: FaultServer, small_shards: Path, tmp_path: Path
) -> None:
    limit_bytes = 6 * (25_000 + 5_000)  # three shards for each of two lanes, and their indexes
    assert sum(size_bytes(path) for path in small_shards.iterdir()) > 1.5 * limit_bytes
    fetch = quick_fetch(tmp_path / "cache", limit_gb=limit_bytes / 1e9)
    sizes_bytes: list[int] = []
    stop = threading.Event()
    watcher = threading.Thread(target=watch, args=(tmp_path / "cache", sizes_bytes, stop))
    watcher.start()
    try:
        assert read_epoch(f"{server.url}/set", fetch, lanes=2) == read_epoch(str(small_shards), None, lanes=2)
    finally:
        stop.set()
        watcher.join()
    assert 0 < max(sizes_bytes) <= limit_bytes


def test_cache_too_small_for_what_is_read_at_a_time_is_refused_before_anything_is_fetched(
    server: FaultServer, manifest: Manifest, tmp_path: Path
) -> None:
    error, images = read_until_stopped(f"{server.url}/set", quick_fetch(tmp_path / "cache", limit_gb=50e-6))
    assert isinstance(error, UserError)
    assert re.search(r"limit_gb=5e-05 is less than .* try limit_gb=", str(error))
    assert images == []
    assert not any(server.gets(f"/set/{shard.name}") for shard in manifest.shards)


def watch(folder: Path, sizes_bytes: list[int], stop: threading.Event) -> None:
    """Note what the files of a cache take together, again and again."""
    while not stop.wait(0.002):
        sizes_bytes.append(sum(size_bytes(path) for path in folder.glob("*") if path.name != ".lock"))


def size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # evicted meanwhile
        return 0


def disk(size: str, options: str, folder: Path) -> Iterator[Path]:
    """Mount a file system in memory for the length of a test."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},{options}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    yield from disk("100k", "rw", tmp_path / "tiny")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    yield from disk("1m", "ro", tmp_path / "read-only")


def test_cache_on_a_disk_that_is_too_small_is_named(server: FaultServer, tiny_disk: Path) -> None:
    error, _ = read_until_stopped(f"{server.url}/set", quick_fetch(tiny_disk / "cache"))
    assert isinstance(error, UserError)
    assert str(tiny_disk / "cache") in str(error)
    assert "\n" not in str(error)


def test_disk_that_fills_up_on_the_way_is_named(
    server: FaultServer, manifest: Manifest, undisturbed: Epoch, tiny_disk: Path
) -> None:
    shards = ShardSet([f"{server.url}/set"], fetch=quick_fetch(tiny_disk / "cache"))
    (tiny_disk / "of others").write_bytes(bytes(50_000))
    with pytest.raises(UserError, match=rf"{tiny_disk}/cache.*full"):
        for number in range(len(manifest.shards)):
            shards.read(number, 0)
    (tiny_disk / "of others").unlink()


def test_cache_on_a_read_only_disk_is_named(server: FaultServer, read_only_disk: Path) -> None:
    with pytest.raises(UserError, match=rf"{read_only_disk}/cache.*read-only"):
        ShardSet([f"{server.url}/set"], fetch=quick_fetch(read_only_disk / "cache"))


def test_cache_without_rights_is_named(server: FaultServer, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "foreign").mkdir(mode=0o555)
    with pytest.raises(UserError, match=rf"{tmp_path}/foreign/cache.*permission denied"):
        ShardSet([f"{server.url}/set"], fetch=quick_fetch(tmp_path / "foreign" / "cache"))
