"""Tests of the copies of checkpoints in an object store."""

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from moto.server import ThreadedMotoServer

from infra.configuration.options import registered
from infra.errors import RunFailed, UserError
from infra.storage.object_store import SCHEMES
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState, find_checkpoints, find_damage
from ssl_core.checkpoints.computation import Computation
from ssl_core.checkpoints.mirror import Mirror, restore_from_mirror
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.checkpoints.tensors import load_state, save_checkpoint
from ssl_core.checkpoints.writer import CheckpointWriter
from ssl_core.pretraining.config import PretrainConfig


@pytest.fixture(autouse=True)
def pretraining(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name options as `sternum pretrain` does, and accept stores in memory."""
    monkeypatch.setitem(SCHEMES, "memory", None)
    with registered(PretrainConfig):
        yield


def state(step: int, seed: int = 0) -> CheckpointState:
    return CheckpointState(step, step / 10, "resnet18", "data", 0.5, 0.25, 1, "0", "0", config={"seed": seed})


def model(step: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((40, 5), float(step))}


def mirror(run: Path, url: str, seed: int = 0) -> Mirror:
    return Mirror(url, run, Computation({"seed": seed}, "data"))


def writer(run: Path, url: str, keep_last: int | None = None, seed: int = 0) -> CheckpointWriter:
    config = CheckpointConfig(keep_last, mirror=url)
    return CheckpointWriter(run, config, torch.device("cpu"), 0, mirror(run, url, seed))


def restore(run: Path, url: str, seed: int = 0) -> None:
    restore_from_mirror(run, mirror(run, url, seed))


def copies(url: str) -> list[int]:
    return mirror(Path("of nobody"), url).steps()


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(run)]


def failing(*_: object, **__: object) -> None:
    """Fail as a client does whose connection breaks."""
    raise ConnectionError("reset by peer")


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/run" if request.param == "memory" else f"file://{tmp_path}/bucket/run"


def test_a_new_folder_resumes_from_the_mirror(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url, keep_last=2) as saving:
        for step in (1, 2):
            saving.save(state(step), model(step), {"weight/exp_avg": torch.ones(2)})
        saving.save_now(state(3), model(3), {"weight/exp_avg": torch.ones(2)})
    assert saving.failures == 0
    assert copies(url) == steps(tmp_path / "first") == [2, 3]
    restore(tmp_path / "second", url)
    (checkpoint,) = find_checkpoints(tmp_path / "second")
    assert checkpoint.state == state(3)
    assert find_damage(checkpoint) is None
    assert torch.equal(load_state(checkpoint)[0]["weight"], model(3)["weight"])


def test_a_run_fetches_only_a_newer_checkpoint(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url) as saving:
        saving.save_now(state(3), model(3), {})
    for step, expected in ((2, [2, 3]), (3, [3]), (4, [4])):
        run = tmp_path / f"at-{step}"
        save_checkpoint(run, state(step), model(step), {})
        restore(run, url)
        assert steps(run) == expected


def test_a_damaged_checkpoint_is_replaced_by_its_copy(tmp_path: Path, url: str) -> None:
    with writer(tmp_path, url) as saving:
        saving.save_now(state(3), model(3), {})
    (tmp_path / "checkpoints" / "step-3" / "state.json").unlink()
    restore(tmp_path, url)
    assert [find_damage(checkpoint) for checkpoint in find_checkpoints(tmp_path)] == [None]


def test_a_damaged_copy_is_skipped_with_a_warning_and_an_unfinished_one_does_not_count(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with writer(tmp_path / "first", url) as saving:
        for step in (1, 2, 3):
            saving.save_now(state(step), model(step), {})
    store, path = fsspec.core.url_to_fs(url)
    content = store.cat_file(f"{path}/step-2/model.safetensors")
    store.pipe_file(f"{path}/step-2/model.safetensors", content[:-1] + b"\x01")
    store.rm_file(f"{path}/step-3/manifest.json")
    restore(tmp_path / "second", url)
    assert steps(tmp_path / "second") == [1]
    assert [path.name for path in (tmp_path / "second" / "checkpoints").iterdir()] == ["step-1"]
    error = capsys.readouterr().err
    assert f"warning: step-2 in checkpoints.mirror={url} is damaged (the SHA-256 of model.safetensors differs" in error


def test_a_mirror_with_only_damaged_copies_stops_the_run_and_keeps_its_folder(tmp_path: Path, url: str) -> None:
    with writer(tmp_path, url) as saving:
        saving.save_now(state(3), model(3), {})
    store, path = fsspec.core.url_to_fs(url)
    for damage in (lambda file: store.pipe_file(file, b"{}"), store.rm_file):
        damage(f"{path}/step-3/state.json")
        with pytest.raises(
            RunFailed, match=r"^checkpoints\.mirror=.* holds no whole checkpoint; repair it, or name another folder"
        ):
            restore(tmp_path / "fresh", url)
        assert steps(tmp_path / "fresh") == []
    weights = tmp_path / "checkpoints" / "step-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(RunFailed, match="holds no whole checkpoint"):
        restore(tmp_path, url)
    assert steps(tmp_path) == [3]


def test_a_copy_in_another_format_is_refused(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url) as saving:
        for step in (2, 3):
            saving.save_now(state(step), model(step), {})
    store, path = fsspec.core.url_to_fs(url)
    store.pipe_file(f"{path}/step-3/manifest.json", b'{"version": 2}')
    with pytest.raises(
        UserError, match=r"step-3 in .* is in format 2 .*; use that version of Sternum, or another checkpoints\.mirror$"
    ):
        restore(tmp_path / "second", url)
    assert steps(tmp_path / "second") == []


def test_an_unreadable_store_stops_only_a_run_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"memory://{tmp_path.name}/run"
    save_checkpoint(tmp_path / "run", state(2), model(2), {})
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "ls", failing)
    restore(tmp_path / "run", url)
    error = capsys.readouterr().err
    assert "warning: checkpoints.mirror=memory://" in error
    assert "reset by peer; check the address and the credentials; " in error
    assert f"; resuming from step 2, the newest in {tmp_path}/run" in error
    (tmp_path / "run" / "checkpoints" / "step-2" / "state.json").unlink()
    for run in ("run", "fresh"):
        with pytest.raises(RunFailed, match=r"checkpoints\.mirror=memory://.* cannot be listed: .*reset by peer"):
            restore(tmp_path / run, url)


@pytest.mark.parametrize("is_known_before", [True, False])
def test_a_disk_that_is_too_small_for_the_copy_is_an_error(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, is_known_before: bool
) -> None:
    with writer(tmp_path / "first", url) as saving:
        saving.save_now(state(3), model(3), {})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if is_known_before:
        monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=1, f_frsize=512, f_blocks=1000))
        message = r"cannot write .*/second/checkpoints/step-3: it needs .* MB, but 0\.0 MB are free"
    else:
        monkeypatch.setattr(type(fsspec.core.url_to_fs(url)[0]), "get_file", full)
        message = r"cannot write .*/second/checkpoints/step-3: no space left on the device"
    with pytest.raises(UserError, match=message):
        restore(tmp_path / "second", url)
    assert steps(tmp_path / "second") == []


def test_an_empty_mirror_changes_nothing(tmp_path: Path, url: str) -> None:
    restore(tmp_path, url)
    assert steps(tmp_path) == []


def test_a_failed_copy_is_an_alarm_and_the_next_save_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"memory://{tmp_path.name}/run"
    store = type(fsspec.filesystem("memory"))

    with writer(tmp_path, url, keep_last=2) as saving:
        saving.save_now(state(1), model(1), {})
        assert saving._copier is not None
        saving._copier.require_done()
        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", failing)
            for step in (2, 3):
                saving.save_now(state(step), model(step), {})
            with pytest.raises(RunFailed, match=r"checkpoints\.mirror=memory://.* cannot be written: .*reset by peer"):
                saving._copier.require_done()
        assert steps(tmp_path) == [2, 3]
        saving.save(state(4), model(4), {})
    assert saving.failures == 2
    assert capsys.readouterr().err.count("ALARM: the mirror is out of date: ") == 2
    assert copies(url) == steps(tmp_path) == [3, 4]


def test_the_next_process_completes_what_a_killed_one_left_undone(tmp_path: Path, url: str) -> None:
    with writer(tmp_path, url) as saving:
        for step in (1, 2):
            saving.save_now(state(step), model(step), {})
    store, path = fsspec.core.url_to_fs(url)
    store.makedirs(f"{path}/step-9")
    store.pipe_file(f"{path}/step-9/model.safetensors", b"half")
    shutil.rmtree(tmp_path / "checkpoints" / "step-1")
    for step in (3, 4):
        save_checkpoint(tmp_path, state(step), model(step), {})
    (tmp_path / "checkpoints" / "step-3" / "state.json").write_text("{}")
    with writer(tmp_path, url, keep_last=2):
        pass
    assert copies(url) == [2, 4]  # the first is superseded, the third is damaged
    assert not store.exists(f"{path}/step-9/model.safetensors")
    restore(tmp_path / "second", url)
    assert steps(tmp_path / "second") == [4]


def test_a_run_without_a_copy_of_its_last_checkpoint_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"memory://{tmp_path.name}/run"
    with monkeypatch.context() as patch:
        patch.setattr(type(fsspec.filesystem("memory")), "put_file", failing)
        for _ in range(2):
            with pytest.raises(RunFailed, match="cannot be written"), writer(tmp_path, url) as saving:
                saving.save_now(state(1), model(1), {})
        # The next start has nothing left to train, but it is not finished while the copy is missing.
        with pytest.raises(RunFailed, match="cannot be written"), writer(tmp_path, url):
            pass
    with writer(tmp_path, url):
        pass
    assert copies(url) == [1]


@pytest.mark.parametrize(("keep_last", "every", "kept"), [(None, None, [1, 2, 12, 13, 14]), (2, 1, [12, 13, 14])])
def test_a_new_machine_removes_only_superseded_copies(
    tmp_path: Path, url: str, keep_last: int | None, every: int | None, kept: list[int]
) -> None:
    with writer(tmp_path / "first", url) as saving:
        for step in (1, 2, 12, 13):  # in epochs 0, 0, 1, 1
            saving.save(state(step), model(step), {})
    config = CheckpointConfig(keep_last, every, mirror=url)
    restore(tmp_path / "second", url)
    run = tmp_path / "second"
    with CheckpointWriter(run, config, torch.device("cpu"), 0, mirror(run, url)) as saving:
        saving.save(state(14), model(14), {})
    assert copies(url) == kept


def test_copies_newer_than_the_folder_are_kept(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url) as saving:
        for step in (2, 3, 4):
            saving.save(state(step), model(step), {})
    save_checkpoint(tmp_path / "second", state(1), model(1), {})
    with writer(tmp_path / "second", url, keep_last=1):
        pass
    assert copies(url) == [1, 4]


def test_a_damaged_checkpoint_never_replaces_its_copy(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url) as saving:
        saving.save_now(state(3), model(3), {})
    for name in ("state.json", "manifest.json"):
        (tmp_path / "first" / "checkpoints" / "step-3" / name).write_text("{}")
        with writer(tmp_path / "first", url):
            pass
    restore(tmp_path / "second", url)
    assert steps(tmp_path / "second") == [3]


def test_a_damaged_copy_is_replaced_by_the_next_save_of_its_step(tmp_path: Path, url: str) -> None:
    for damaged in (True, False):
        with writer(tmp_path / "first", url) as saving:
            saving.save_now(state(3), model(3), {})
        if damaged:
            store, path = fsspec.core.url_to_fs(url)
            store.pipe_file(f"{path}/step-3/model.safetensors", b"damaged")
    restore(tmp_path / "second", url)
    assert steps(tmp_path / "second") == [3]


def test_a_slow_store_delays_no_save_and_keeps_what_it_is_copying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}/run"
    copying, go = threading.Event(), threading.Event()
    put = Mirror.put

    def slow(store: Mirror, checkpoint: Checkpoint) -> None:
        copying.set()
        assert go.wait(60)
        put(store, checkpoint)

    monkeypatch.setattr(Mirror, "put", slow)
    with writer(tmp_path, url, keep_last=1) as saving:
        saving.save(state(1), model(1), {})
        assert copying.wait(60)
        for step in (2, 3, 4):
            saving.save(state(step), model(step), {})
        saving._pending.result()
        assert steps(tmp_path) == [1, 4]  # the first is being copied
        assert copies(url) == []
        go.set()
    assert saving.failures == 0
    assert steps(tmp_path) == copies(url) == [4]


def test_the_mirror_of_another_run_is_refused_and_nothing_is_fetched(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url, keep_last=1) as saving:
        saving.save_now(state(5), model(5), {})
    message = (
        r"^checkpoints\.mirror=.*: seed=1 differs from 0 of the run that owns it, in .*:.*/first; "
        r"use seed=0 to resume it, or another run folder and another checkpoints\.mirror$"
    )
    with pytest.raises(UserError, match=message):
        restore(tmp_path / "second", url, seed=1)
    assert not (tmp_path / "second").exists()
    with pytest.raises(UserError, match=message), writer(tmp_path / "second", url, keep_last=1, seed=1) as saving:
        saving.save_now(state(6, seed=1), model(6), {})
    assert saving.failures == 1
    assert steps(tmp_path / "second") == [6]
    assert copies(url) == [5]
    other_shards = Mirror(url, tmp_path / "third", Computation({"seed": 0}, "other data"))
    with pytest.raises(UserError, match=r"the content of data\.shards differs from that of the run that owns it"):
        restore_from_mirror(tmp_path / "third", other_shards)


def test_copies_of_a_version_without_owners_belong_to_the_run_that_made_them(tmp_path: Path, url: str) -> None:
    with writer(tmp_path / "first", url) as saving:
        saving.save_now(state(3), model(3), {})
    store, path = fsspec.core.url_to_fs(url)
    store.rm_file(f"{path}/owner.json")
    with pytest.raises(UserError, match="seed=1 differs from 0 of the run that made its copies; "):
        restore(tmp_path / "second", url, seed=1)
    restore(tmp_path / "third", url)
    assert steps(tmp_path / "third") == [3]


def test_a_replacement_machine_takes_the_mirror_over_and_the_old_one_changes_nothing_any_more(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = r"was taken over by the run in .*/second, so this one changes nothing there"
    with pytest.raises(UserError, match=message), writer(tmp_path / "first", url, keep_last=1) as old:
        old.save_now(state(1), model(1), {})
        assert old._copier is not None
        old._copier.require_done()
        new = mirror(tmp_path / "second", url)
        restore_from_mirror(tmp_path / "second", new)
        assert steps(tmp_path / "second") == [1]
        old.save_now(state(2), model(2), {})
    assert copies(url) == [1]
    assert steps(tmp_path / "first") == [2]
    errors = capsys.readouterr().err
    assert f"taking over checkpoints.mirror={url} from the run in " in errors
    assert "ALARM: the mirror is out of date: checkpoints.mirror=" in errors
    new.claim()  # is still the owner


def test_of_runs_that_start_at_the_same_moment_one_gets_the_mirror(tmp_path: Path, url: str) -> None:
    together = threading.Barrier(8)

    def start(seed: int) -> Mirror | None:
        mine = mirror(tmp_path / str(seed), url, seed)
        together.wait()
        with suppress(UserError):
            mine.claim()
            return mine
        return None

    with ThreadPoolExecutor(8) as pool:
        started = [mine for mine in pool.map(start, range(8)) if mine is not None]
    if not url.startswith("memory"):  # stores with conditional writes
        assert len(started) == 1
    owners = []
    for mine in started:  # at the latest, the first copy tells them apart
        with suppress(UserError):
            mine.claim()
            owners.append(mine)
    assert len(owners) == 1


def test_a_damaged_owner_is_one_line(tmp_path: Path, url: str) -> None:
    store, path = fsspec.core.url_to_fs(url)
    store.makedirs(path, exist_ok=True)
    for damage in (b"", b"{}", b"\xff", b"[" * 100_000):
        store.pipe_file(f"{path}/owner.json", damage)
        with pytest.raises(UserError, match=r"^owner\.json in checkpoints\.mirror=.* is damaged \(.*\); remove it"):
            restore(tmp_path / "run", url)


@pytest.mark.parametrize("name", ["run[1]", "run*"])
def test_a_mirrors_path_is_no_pattern(tmp_path: Path, url: str, name: str) -> None:
    require_separate(tmp_path, f"{url}/run1", f"{url}/{name}")


def require_separate(folder: Path, neighbor: str, url: str) -> None:
    """Check that a mirror works whose path matches that of its neighbor as a pattern, and that this one stays."""
    for place, run in ((neighbor, "neighbor"), (url, "first")):
        with writer(folder / run, place, keep_last=1) as saving:
            for step in (1, 2) if run == "neighbor" else (1, 2, 3):
                saving.save_now(state(step), model(step), {})
    assert (copies(neighbor), copies(url)) == ([2], [3])
    restore(folder / "second", url)
    assert steps(folder / "second") == [3]


@pytest.mark.parametrize("url", ["pipe:cat", "/a/folder", "hdfs://a/b", "s4://bucket/run", "https://server/run"])
def test_a_mirror_that_is_not_an_object_store_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"^checkpoints\.mirror=.* must begin with s3://, gs:// or file://$"):
        mirror(Path("run"), url)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the URL of an empty bucket on a real S3 server on this machine."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()  # `s3()` must not be a client of another server
    s3().makedirs("bucket", exist_ok=True)  # servers in one process share their buckets
    yield "s3://bucket"
    s3.clear_instance_cache()
    server.stop()


def test_a_new_folder_resumes_from_s3(tmp_path: Path, bucket: str) -> None:
    url = f"{bucket}/runs/first"
    with writer(tmp_path / "first", url, keep_last=2) as saving:
        for step in (1, 2, 3):
            saving.save(state(step), model(step), {})
    assert saving.failures == 0
    assert copies(url) == [2, 3]
    restore(tmp_path / "second", url)
    (checkpoint,) = find_checkpoints(tmp_path / "second")
    assert checkpoint.state == state(3)
    assert find_damage(checkpoint) is None


def test_an_s3_bucket_keeps_runs_apart(tmp_path: Path, bucket: str) -> None:
    """S3 writes conditionally: of runs that start at the same moment, one gets the mirror."""
    test_of_runs_that_start_at_the_same_moment_one_gets_the_mirror(tmp_path, f"{bucket}/runs/array")
    require_separate(tmp_path, f"{bucket}/runs/run1", f"{bucket}/runs/run[1]")
