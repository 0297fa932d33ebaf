import os
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from sharding.reading.cache import CacheFull, OpenFile, ShardCache
from sharding.reading.fetch import FetchConfig, FileSpec, Unavailable
from sharding.reading.location import WebFolder, open_location
from tests.support.fault_server import Fault, FaultServer, first_bytes, serving

SIZE_BYTES = 10_000
FILES = {f"{letter}.tar": letter.encode() * SIZE_BYTES for letter in "abcdef"}

Open = Callable[[str], OpenFile]


@pytest.fixture(scope="module")
def running_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultServer]:
    folder = tmp_path_factory.mktemp("elsewhere")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    with serving(folder) as server:
        yield server


@pytest.fixture
def server(running_server: FaultServer) -> FaultServer:
    running_server.heal()
    return running_server


def wanted(name: str) -> FileSpec:
    return FileSpec(name, sha256(FILES[name]).hexdigest(), SIZE_BYTES)


def cache_of(folder: Path, files: float, **values: float) -> ShardCache:
    """A cache with room for this number of files."""
    return ShardCache(FetchConfig(cache_folder=folder, limit_gb=files * SIZE_BYTES / 1e9, **values))  # type: ignore[arg-type]


def remote(server: FaultServer) -> WebFolder:
    folder = open_location(server.url)
    assert isinstance(folder, WebFolder)
    return folder


def content(held: OpenFile) -> bytes:
    return os.pread(held.descriptor, SIZE_BYTES + 1, 0)


def names(cache: ShardCache) -> set[str]:
    of_hash = {sha256(data).hexdigest(): name for name, data in FILES.items()}
    return {of_hash[path.name] for path in cache.folder.iterdir() if path.name in of_hash}


def test_file_is_fetched_once_and_found_afterwards(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path / "new" / "cache", 3)
    first = cache.open(remote(server), wanted("a.tar"))
    again = cache_of(tmp_path / "new" / "cache", 3).open(remote(server), wanted("a.tar"))
    assert content(first) == content(again) == FILES["a.tar"]
    assert (first.was_cached, again.was_cached) == (False, True)
    assert len(server.gets("/a.tar")) == 1
    assert cache.fetcher.bytes_fetched == SIZE_BYTES


def test_file_used_longest_ago_makes_room(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    for name in ("a.tar", "b.tar", "c.tar", "a.tar", "d.tar"):
        cache.open(remote(server), wanted(name))
    assert names(cache) == {"a.tar", "c.tar", "d.tar"}


def test_file_that_is_read_never_makes_room(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 2)
    held = [cache.open(remote(server), wanted(name)) for name in ("a.tar", "b.tar")]
    with pytest.raises(CacheFull, match=r"2e-05 GB of limit_gb=2e-05 are in use, and 1e-05 GB more"):
        cache_of(tmp_path, 2).open(remote(server), wanted("c.tar"))
    assert names(cache) == {"a.tar", "b.tar"}
    del held[0]
    assert content(cache.open(remote(server), wanted("c.tar"))) == FILES["c.tar"]
    assert names(cache) == {"b.tar", "c.tar"}
    assert content(held[0]) == FILES["b.tar"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(FILES)), st.booleans()), max_size=12),
    files=st.integers(1, 4),
)
def test_cache_never_holds_more_than_its_limit(
    server: FaultServer,
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[str, bool]],
    files: int,
) -> None:
    cache = cache_of(tmp_path_factory.mktemp("cache"), files)
    held: list[OpenFile] = []
    for name, keep in steps:
        try:
            opened = cache.open(remote(server), wanted(name))
        except CacheFull:
            assert len(held) == files
            held.clear()
            continue
        assert content(opened) == FILES[name]
        if keep and opened.path not in [other.path for other in held]:
            held.append(opened)
        del opened
        assert len(names(cache)) <= files
        assert {other.path.name for other in held} <= {path.name for path in cache.folder.iterdir()}


def test_file_larger_than_the_limit_is_refused(server: FaultServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^limit_gb=5e-06 is less than the 1e-05 GB of .*/a\.tar; raise it"):
        cache_of(tmp_path, 0.5).open(remote(server), wanted("a.tar"))


def test_partial_file_of_a_killed_process_is_continued(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    (tmp_path / f"{wanted('a.tar').sha256}.{SIZE_BYTES}.partial").write_bytes(FILES["a.tar"][:4000])
    assert content(cache.open(remote(server), wanted("a.tar"))) == FILES["a.tar"]
    assert first_bytes(server.gets("/a.tar")) == [4000]


@pytest.mark.parametrize("left", [b"x" * 4000, b"x" * SIZE_BYTES, b"x" * 2 * SIZE_BYTES])
def test_wrong_partial_file_is_thrown_away(server: FaultServer, tmp_path: Path, left: bytes) -> None:
    cache = cache_of(tmp_path, 3)
    (tmp_path / f"{wanted('a.tar').sha256}.{SIZE_BYTES}.partial").write_bytes(left)
    assert content(cache.open(remote(server), wanted("a.tar"))) == FILES["a.tar"]
    assert names(cache) == {"a.tar"}


def test_partial_file_of_another_shard_makes_room(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 1)
    left = tmp_path / f"{wanted('a.tar').sha256}.{SIZE_BYTES}.partial"
    left.write_bytes(b"a")
    assert content(cache.open(remote(server), wanted("b.tar"))) == FILES["b.tar"]
    assert not left.exists()


def test_file_of_the_wrong_size_is_fetched_again(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3)
    os.truncate(cache.open(remote(server), wanted("a.tar")).path, 17)
    assert content(cache.open(remote(server), wanted("a.tar"))) == FILES["a.tar"]


def test_damaged_file_is_fetched_again_when_it_is_checked(
    server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = cache_of(tmp_path, 3)
    path = cache.open(remote(server), wanted("a.tar")).path
    path.write_bytes(FILES["b.tar"])
    reader = cache.open(remote(server), wanted("a.tar"))
    mended = cache.open(remote(server), wanted("a.tar"), check=True)
    assert (content(mended), mended.was_cached) == (FILES["a.tar"], False)
    assert content(reader) == FILES["b.tar"]  # what another process has open stays as it was
    assert f"warning: {path} is damaged; {server.url}/a.tar is downloaded again" in capsys.readouterr().err
    assert cache.open(remote(server), wanted("a.tar"), check=True).was_cached
    assert len(server.gets("/a.tar")) == 2


def test_damaged_file_is_removed_only_by_the_first_process_that_finds_it(server: FaultServer, tmp_path: Path) -> None:
    path = cache_of(tmp_path, 3).open(remote(server), wanted("a.tar")).path
    path.write_bytes(FILES["b.tar"])
    caches = [cache_of(tmp_path, 3) for _ in range(4)]
    start = threading.Barrier(len(caches))
    read: list[bytes] = []

    def open_checked(cache: ShardCache) -> None:
        start.wait()
        read.append(content(cache.open(remote(server), wanted("a.tar"), check=True)))

    threads = [threading.Thread(target=open_checked, args=[cache]) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [FILES["a.tar"]] * len(caches)
    assert len(server.gets("/a.tar")) == 2


def test_folder_that_everyone_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    message = rf"^cache_folder={tmp_path}/shared is a folder that every .*; try cache_folder={tmp_path}/shared/sternum$"
    with pytest.raises(UserError, match=message):
        cache_of(tmp_path / "shared", 1)
    assert list((tmp_path / "shared").iterdir()) == []
    made = cache_of(tmp_path / "shared" / "sternum", 1).folder
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("size_bytes", [SIZE_BYTES - 1, SIZE_BYTES + 1])
def test_file_that_the_manifest_describes_with_another_size_is_refused(
    server: FaultServer, tmp_path: Path, size_bytes: int
) -> None:
    spec = FileSpec("a.tar", sha256(FILES["a.tar"]).hexdigest(), size_bytes)
    with pytest.raises(Unavailable, match=r"/a\.tar cannot be downloaded: "):
        cache_of(tmp_path, 3, attempts=2).open(remote(server), spec)
    assert names(cache_of(tmp_path, 3)) == set()


def test_other_files_in_the_folder_are_left_alone(server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_bytes(b"x" * 10 * SIZE_BYTES)
    cache = cache_of(tmp_path, 1)
    for name in ("a.tar", "b.tar"):
        cache.open(remote(server), wanted(name))
    assert names(cache) == {"b.tar"}
    assert (tmp_path / "thesis.tex").stat().st_size == 10 * SIZE_BYTES


def test_bytes_of_a_failed_download_are_kept_for_later(server: FaultServer, tmp_path: Path) -> None:
    cache = cache_of(tmp_path, 3, attempts=1)
    server.script("/a.tar", Fault("cut", 6000))
    with pytest.raises(
        Unavailable, match=r"/a\.tar cannot be downloaded: the response broke off; 1 attempts failed in a row$"
    ):
        cache.open(remote(server), wanted("a.tar"))
    assert names(cache) == set()
    cache.open(remote(server), wanted("a.tar"))
    assert first_bytes(server.gets("/a.tar")) == [0, 6000]


def test_fetch_ends_when_stop_is_set(server: FaultServer, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(Unavailable, match=r"download of .*/a\.tar was stopped"):
        cache_of(tmp_path, 3).open(remote(server), wanted("a.tar"), stop)
    assert server.gets("/a.tar") == []


def test_room_must_fit_the_limit_and_the_disk(tmp_path: Path) -> None:
    cache = ShardCache(FetchConfig(cache_folder=tmp_path, limit_gb=1e6))
    cache.require_room(1000, "a test reads")
    with pytest.raises(
        UserError, match=r"has [0-9.e+]+ GB for shards, less than the 1e\+05 GB that a test reads at a time"
    ):
        cache.require_room(10**14, "a test reads")
    with pytest.raises(UserError, match=r"^limit_gb=1e\+06 is less than the 2e\+06 GB .*; try limit_gb=3e\+06"):
        cache.require_room(2 * 10**15, "a test reads")


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/file/cache: a part of this path is a file"):
        cache_of(tmp_path / "file" / "cache", 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit_gb": 0.0}, r"^limit_gb=0\.0 must be positive and below 10\^9; try 50"),
        ({"stall_s": float("nan")}, r"^stall_s=nan must be positive and below 10\^9; try 30"),
        ({"total_s": float("inf")}, r"^total_s=inf must be positive and below 10\^9; try 600"),
        ({"connections": 0}, r"^connections=0 must be between 1 and 1000; try 4"),
        ({"attempts": -1}, r"^attempts=-1 must be between 1 and 1000; try 10"),
    ],
)
def test_fetch_config_names_value_rule_and_fix(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FetchConfig(**values)  # type: ignore[arg-type]
