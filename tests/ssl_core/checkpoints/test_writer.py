import errno
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ssl_core.checkpoints.writer
from infra.errors import RunFailed, UserError
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState, find_checkpoints, find_damage
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.checkpoints.tensors import load_state, save_checkpoint
from ssl_core.checkpoints.writer import CheckpointWriter

CPU = torch.device("cpu")


def state(step: int, epoch: float | None = None) -> CheckpointState:
    reached = step / 10 if epoch is None else epoch
    return CheckpointState(step, reached, "resnet18", "data", 0.5, 0.25, 1, "0", "0", config={"seed": 8})


def model(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(4, 3, 5, 5, generator=generator).to(memory_format=torch.channels_last)
    return {"weight": weight, "bias": torch.randn(7, generator=generator), "steps": torch.tensor(step)}


def writer(run: Path, config: CheckpointConfig | None = None, expected_bytes: int = 0) -> CheckpointWriter:
    return CheckpointWriter(run, config or CheckpointConfig(), CPU, expected_bytes)


def steps(run: Path) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(run)]


def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Make saves wait for the event before they write."""
    go = threading.Event()

    def held(*arguments: Any) -> Checkpoint:
        assert go.wait(60)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(ssl_core.checkpoints.writer, "save_checkpoint", held)
    return go


def fail_once(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    errors = iter([error])

    def failing(*arguments: Any) -> Checkpoint:
        for actual in errors:
            raise actual
        return save_checkpoint(*arguments)

    monkeypatch.setattr(ssl_core.checkpoints.writer, "save_checkpoint", failing)


@pytest.mark.parametrize("expected_bytes", [0, 100, 1_000_000])
def test_a_save_holds_what_the_tensors_held_when_it_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_bytes: int
) -> None:
    go = hold(monkeypatch)
    with writer(tmp_path, expected_bytes=expected_bytes) as saving:
        tensors, optimizer = model(1), {"weight/exp_avg": torch.ones(3)}
        saving.save(state(1), tensors, optimizer)
        assert steps(tmp_path) == []  # the caller continues before anything is written
        for tensor in (*tensors.values(), *optimizer.values()):
            tensor.zero_()
        go.set()
    (checkpoint,) = find_checkpoints(tmp_path)
    assert checkpoint.state == state(1)
    actual, moments = load_state(checkpoint)
    assert all(torch.equal(actual[name], tensor) for name, tensor in model(1).items())
    assert torch.equal(moments["weight/exp_avg"], torch.ones(3))
    assert 0 < saving.wait_s < saving.save_s


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_a_save_from_a_gpu_holds_what_the_tensors_held_when_it_was_called(tmp_path: Path) -> None:
    tensors = {f"{part}": torch.full((1 << 20,), part, device="cuda") for part in range(50)}
    with CheckpointWriter(tmp_path, CheckpointConfig(), torch.device("cuda"), 0) as saving:
        saving.save(state(1), tensors, {})
        for tensor in tensors.values():
            tensor.zero_()
    actual, _ = load_state(find_checkpoints(tmp_path)[0])
    assert all(torch.equal(actual[f"{part}"], torch.full((1 << 20,), part)) for part in range(50))


def test_a_save_waits_for_the_one_before_it_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    go = hold(monkeypatch)
    with writer(tmp_path) as saving:
        saving.save(state(1), model(1), {})
        threading.Timer(0.2, go.set).start()
        saving.save(state(2), model(2), {})
        assert 1 in steps(tmp_path)
    assert "the checkpoint of step 2 waits for step 1" in capsys.readouterr().err
    for checkpoint, step in zip(find_checkpoints(tmp_path), (1, 2), strict=True):
        assert torch.equal(load_state(checkpoint)[0]["bias"], model(step)["bias"])


@pytest.mark.parametrize(
    "error",
    [UserError("no space left on the device"), RunFailed("the disk failed"), OSError(errno.ENODEV, "No such device")],
)
def test_a_save_that_fails_in_the_background_is_an_alarm_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    with writer(tmp_path) as saving:
        saving.save(state(1), model(1), {})
        saving._pending.result()
        fail_once(monkeypatch, error)
        saving.save(state(2), model(2), {})
        saving.save(state(3), model(3), {})
    assert saving.failures == 1
    assert steps(tmp_path) == [1, 3]
    printed = capsys.readouterr().err
    assert f"ALARM: the checkpoint of step 2 was not saved, the older ones stay: {error}; training continues" in printed


def test_the_last_save_raises_what_the_disk_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer(tmp_path) as saving:
        for error in (
            UserError("no space left"),
            RunFailed("the disk failed"),
            OSError(errno.ENODEV, "No such device"),
        ):
            fail_once(monkeypatch, error)
            # Not a UserError, after which a supervisor would not start again.
            with pytest.raises(RunFailed, match=rf"the checkpoint of step 1 cannot be saved: .*{error.args[-1]}"):
                saving.save_now(state(1), model(1), {})
        assert find_damage(saving.save_now(state(1), model(1), {})) is None
    assert saving.failures == 0


def test_an_error_of_ours_in_the_background_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="complex64"), writer(tmp_path) as saving:
        saving.save(state(1), {"weight": torch.zeros(2, dtype=torch.complex64)}, {})
    assert steps(tmp_path) == []


def test_remains_of_a_killed_save_are_removed_at_the_start(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), model(1), {})
    folder = tmp_path / "checkpoints"
    for name in (".step-2.partial-77", ".step-0.removed-77"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    with writer(tmp_path):
        assert [path.name for path in folder.iterdir()] == ["step-1"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    epochs=st.lists(st.floats(0.1, 3.0), min_size=1, max_size=8).map(
        lambda gaps: [sum(gaps[: i + 1]) for i in range(len(gaps))]
    ),
    keep_last=st.integers(1, 4),
    every=st.none() | st.integers(1, 4),
    restart=st.integers(0, 8),
)
def test_kept_are_the_newest_and_the_first_after_each_multiple_of_epochs(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[float], keep_last: int, every: int | None, restart: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    config = CheckpointConfig(keep_last, every)
    for part in (range(min(restart, len(epochs))), range(restart, len(epochs))):  # two processes, one after the other
        with writer(run, config) as saving:
            for index in part:
                saving.save_now(state(index + 1, epochs[index]), {"weight": torch.zeros(1)}, {})
                assert steps(run)[-1] == index + 1
    multiples = [int(epoch) // every if every else 0 for epoch in epochs]
    first = {index for index, multiple in enumerate(multiples) if multiple > max([0, *multiples[:index]])}
    newest = set(range(len(epochs))[-keep_last:])
    assert steps(run) == [index + 1 for index in sorted(first | newest)]


def test_a_damaged_checkpoint_does_not_count_among_those_to_keep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state(step), model(step), {})
    (tmp_path / "checkpoints" / "step-3" / "state.json").write_text("{}")
    with writer(tmp_path, CheckpointConfig(keep_last=2)) as saving:
        saving.save_now(state(4), model(4), {})
        assert steps(tmp_path) == [2, 3, 4]
        saving.save_now(state(5), model(5), {})
        assert steps(tmp_path) == [4, 5]
    assert capsys.readouterr().err.count("step-3 is damaged (state.json has 2 bytes") == 1


def test_a_checkpoint_behind_a_link_is_removed_as_a_link(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "elsewhere", state(1), model(1), {})
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-1").symlink_to(tmp_path / "elsewhere" / "checkpoints" / "step-1")
    with writer(tmp_path, CheckpointConfig(keep_last=1)) as saving:
        saving.save_now(state(2), model(2), {})
    assert steps(tmp_path) == [2]
    assert steps(tmp_path / "elsewhere") == [1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CheckpointConfig(keep_last=0), r"checkpoints\.keep_last=0 must be at least 1"),
        (lambda: CheckpointConfig(keep_every_epochs=5), r"checkpoints\.keep_every_epochs=5 has no effect"),
    ],
)
def test_a_value_out_of_range_is_named(build: Callable[[], CheckpointConfig], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


_WATCH_THREADS = """
import sys, threading, time
from pathlib import Path
import psutil, torch
from tests.ssl_core.checkpoints.test_writer import state, writer

def threads_of_libraries():
    of_python = {thread.native_id for thread in threading.enumerate()}
    return {thread.id for thread in psutil.Process().threads() if thread.id not in of_python}

torch.set_num_threads(2)
tensors = {"weight": torch.ones(512, 256, 3, 3).to(memory_format=torch.channels_last)}
tensors["weight"].add(1)  # as the training does
of_training = threads_of_libraries()
assert of_training
with writer(Path(sys.argv[1]), expected_bytes=8_000_000) as saves:
    for step in range(1, 4):
        saves.save(state(step), tensors, tensors)
    until = time.monotonic() + 20
    while threads_of_libraries() != of_training:
        assert time.monotonic() < until, "threads of a save have remained"
        time.sleep(0.05)
"""


def test_no_threads_of_a_save_remain_that_would_slow_the_training(tmp_path: Path) -> None:
    # In a process of its own: which threads PyTorch starts depends on all that its Python threads have called.
    subprocess.run([sys.executable, "-c", _WATCH_THREADS, str(tmp_path)], check=True)
