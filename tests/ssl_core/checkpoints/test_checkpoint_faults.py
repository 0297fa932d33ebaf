"""Checkpoints under kills, disk faults and flipped bits, with real processes and real file systems."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ssl_core.checkpoints.tensors
from infra.errors import RunFailed
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState, find_checkpoints, other_version
from ssl_core.checkpoints.newest import newest_whole_checkpoint
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.checkpoints.tensors import load_state, save_checkpoint
from ssl_core.checkpoints.writer import CheckpointWriter
from tests.support.disk_faults import NoDisk, small_disk

# Saves step 3 into a copy of a run again and again; the k-th time, the kernel kills the process at its k-th disk
# operation: opening, writing (half of it), syncing, renaming, removing.
KILLED_AT_EVERY_STEP = """
import os, shutil, signal, sys
from pathlib import Path
import torch
from tests.support.disk_faults import on_disk_events
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.checkpoints.writer import CheckpointWriter

run, out, stride = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

class Killer:
    def __init__(self, at):
        self.left = at

    def __call__(self, event, path):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def save(folder, kill_at=None):
    if kill_at is not None:
        on_disk_events(out, Killer(kill_at))
    with CheckpointWriter(folder, CheckpointConfig(keep_last=2), torch.device("cpu"), 0) as writer:
        state = CheckpointState(3, 0.3, "resnet18", "data", 0.5, 0.25, 1, "0", "0")
        writer.save(state, {"weight": torch.full((50,), 3.0)}, {"weight/exp_avg": torch.ones(50)})
    assert writer.failures == 0

def in_child(*arguments):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            save(*arguments)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]

for kill_at in range(1, 1000, stride):
    folder = out / str(kill_at)
    shutil.copytree(run, folder)
    status = in_child(folder, kill_at)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    shutil.copytree(folder, out / f"{kill_at}-again")
    assert in_child(out / f"{kill_at}-again") == 0, kill_at
"""


def state(step: int) -> CheckpointState:
    return CheckpointState(step, step / 10, "resnet18", "data", 0.5, 0.25, 1, "0", "0")


def save(run: Path, step: int, elements: int = 50) -> None:
    save_checkpoint(run, state(step), {"weight": torch.full((elements,), float(step))}, {"a/b": torch.ones(5)})


def weight(run: Path) -> tuple[int, float]:
    """Return the step of the newest whole checkpoint and the value of its weight."""
    actual = newest_whole_checkpoint(run)
    assert actual is not None
    values = set(load_state(actual)[0]["weight"].flatten().tolist())
    assert len(values) == 1
    return actual.step, values.pop()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# A damaged checkpoint of step 3 adds disk operations, because it is replaced.
@pytest.mark.parametrize(
    ("damaged", "stride"),
    [
        (True, 12),
        pytest.param(True, 1, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
    ],
)
def test_a_save_killed_at_any_step_leaves_a_whole_checkpoint_and_is_repaired(
    tmp_path: Path, damaged: bool, stride: int
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    save(run, 1)
    save(run, 2)
    if damaged:
        save(run, 3)
        (run / "checkpoints" / "step-3" / "state.json").unlink()
    out.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # finds tests.support
    script = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(run), str(out), str(stride)]
    subprocess.run(script, check=True, capture_output=True, timeout=240, env=environment)
    killed = [folder for folder in out.iterdir() if not folder.name.endswith("-again")]
    assert len(killed) > 30 / stride
    undisturbed = content(max(killed, key=lambda folder: int(folder.name)))
    assert {name.split("/")[1] for name in undisturbed} == {"step-2", "step-3"}
    for folder in killed:
        assert weight(folder) in [(2, 2.0), (3, 3.0)], folder.name
    for folder in out.glob("*-again"):
        assert content(folder) == undisturbed, folder.name


@pytest.fixture
def two_megabytes(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of this size."""
    try:
        with small_disk(tmp_path, size_mb=2):
            yield tmp_path
    except NoDisk as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_is_an_alarm_and_the_old_checkpoint_stays(
    two_megabytes: Path, foreseen: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not foreseen:  # another process fills the disk between the check and the write
        monkeypatch.setattr(ssl_core.checkpoints.tensors, "require_space", lambda *_: None)
    model, moments = {"weight": torch.zeros(150_000)}, {"weight/exp_avg": torch.zeros(150_000)}  # 1.2 MB
    with CheckpointWriter(two_megabytes, CheckpointConfig(keep_last=1), torch.device("cpu"), 0) as writer:
        writer.save_now(state(1), {"weight": torch.ones(1000)}, {}) if foreseen else writer.save_now(
            state(1), model, {}
        )
        writer.save(state(2), model, moments | {"weight/exp_avg_sq": torch.zeros(150_000)})
        writer._pending.result()
        assert writer.failures == 1
        assert [path.name for path in (two_megabytes / "checkpoints").iterdir()] == ["step-1"]
        printed = capsys.readouterr().err
        assert "ALARM: the checkpoint of step 2 was not saved, the older ones stay: cannot write" in printed
        assert ("but 2.1 MB are free" if foreseen else "no space left on the device; free some") in printed
        with pytest.raises(RunFailed, match="the checkpoint of step 2 cannot be saved: cannot write"):
            writer.save_now(state(2), model, moments | {"weight/exp_avg_sq": torch.zeros(150_000)})
        assert weight(two_megabytes)[0] == 1
        subprocess.run(["mount", "-o", "remount,size=8m", two_megabytes], check=True)
        writer.save(state(3), model, moments)
    assert writer.failures == 1
    assert [checkpoint.step for checkpoint in find_checkpoints(two_megabytes)] == [3]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    save(run, 1)
    save(run, 2)
    return run


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    name=st.sampled_from(["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]),
    place=st.floats(0, 1, exclude_max=True),
    harm=st.sampled_from([*range(8), "cut", "grow"]),
)
def test_any_flipped_bit_any_cut_and_any_growth_is_noticed(two: Path, name: str, place: float, harm: int | str) -> None:
    file = two / "checkpoints" / "step-2" / name
    before = file.read_bytes()
    at = int(place * len(before))
    flipped = bytes([before[at] ^ (1 << harm)]) if isinstance(harm, int) else b""
    after = {"cut": before[:at], "grow": before + b"x"}
    file.write_bytes(after[harm] if isinstance(harm, str) else before[:at] + flipped + before[at + 1 :])
    try:
        assume(other_version(Checkpoint(file.parent, 2)) is None)  # a flipped digit may read as one, which is refused
        assert weight(two) == (1, 1.0)
    finally:
        file.write_bytes(before)
    assert weight(two) == (2, 2.0)
