"""The background writer of checkpoints: a step waits for a copy in memory, not for the disk."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final, ParamSpec

import torch
from torch import Tensor

from infra.errors import RunFailed, UserError
from infra.log import say
from infra.storage.files import remove_folder, remove_remains
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState, checkpoint_path, find_checkpoints, find_damage
from ssl_core.checkpoints.copier import CheckpointCopier
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.checkpoints.retention import CheckpointConfig, superseded
from ssl_core.checkpoints.tensors import save_checkpoint

_TROUBLE: Final = (OSError, UserError, RunFailed)  # failures of disk or network; all others are bugs
_ALIGNMENT: Final = 64  # bytes

Tensors = dict[str, Tensor]
P = ParamSpec("P")


class CheckpointWriter(AbstractContextManager["CheckpointWriter"]):
    """Saves a run's checkpoints and removes superseded ones, on the rank that holds the run's lock.

    A failure of disk or network in the background does not end the training: it prints an alarm, the older checkpoints
    stay, and `failures` counts it. Leaving the context waits for the running save and copies, and raises RunFailed if
    a mirror is not up to date by then, or UserError if it belongs to another run.

    Attributes:
        failures: number of failed saves in the background and failed updates of the mirror
        wait_s: seconds that the newest call of `save` took
        save_s: seconds that the newest finished save took, from its call on
    """

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        device: torch.device,
        expected_bytes: int = 0,
        mirror: Mirror | None = None,
    ) -> None:
        """Remove the remains of a killed process, and reserve memory in the background.

        Args:
            run: the run folder
            config: which checkpoints to keep
            device: device of the tensors to save
            expected_bytes: size of one save; the first save waits for any memory beyond it
            mirror: the store that receives copies, if `config` names one
        """
        remove_remains(run / "checkpoints")
        self.failures = 0
        self._counting = Lock()
        self.wait_s = self.save_s = 0.0
        self._run = run
        self._config = config
        self._writing: int | None = None  # the step of the newest save
        self._whole: dict[Path, bool] = {}
        self._copier = CheckpointCopier(run, config, mirror, self._is_whole, self._alarm) if mirror else None
        self._memory = _Memory(device)
        self._pending = _in_background(self._memory.reserve, expected_bytes)

    def save(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
        """Copy the tensors and write the checkpoint in the background, after a running save has finished.

        Args:
            state: position of the run
            model: parameters and buffers by name
            optimizer: the optimizer's state
        """
        started = time.perf_counter()
        self._join(state.step)
        model, optimizer = self._memory.copy(model, optimizer)
        self._pending = _in_background(self._save_in_background, started, state, model, optimizer)
        self.wait_s = time.perf_counter() - started

    def save_now(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> Checkpoint:
        """Save the last checkpoint of a process; return once it is durable. Leaving the context waits for its copy.

        Raises:
            RunFailed: if it cannot be saved, also on a full disk: once there is room, the same command resumes the run
        """
        started = time.perf_counter()
        self._join(state.step)
        try:
            checkpoint = self._write(state, model, optimizer)
            self._remove_superseded(checkpoint)
        except _TROUBLE as error:
            raise RunFailed(f"the checkpoint of step {state.step} cannot be saved: {error}") from error
        if self._copier:
            self._copier.update(state.step)
        self.wait_s = self.save_s = time.perf_counter() - started
        return checkpoint

    def close(self) -> None:
        """Wait for the running save and copies."""
        try:
            self._pending.result()
        finally:
            if self._copier:
                self._copier.close()

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._copier and error_type is None:  # a run is finished only if its mirror is up to date
            self._copier.require_done()

    def _join(self, step: int) -> None:
        """Wait for the running save, or before the first save for the memory."""
        if self._writing is not None and not self._pending.done():
            say(f"the checkpoint of step {step} waits for step {self._writing}, which is still being written")
        self._pending.result()
        self._writing = step

    def _save_in_background(self, started: float, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
        try:
            self._memory.wait()
            checkpoint = self._write(state, model, optimizer)
        except _TROUBLE as error:
            self._alarm(f"the checkpoint of step {state.step} was not saved, the older ones stay: {error}")
            return
        try:
            self._remove_superseded(checkpoint)
        except _TROUBLE as error:
            self._alarm(f"{checkpoint.path} is saved, but superseded checkpoints could not be removed: {error}")
        if self._copier:
            self._copier.update(state.step)
        self.save_s = time.perf_counter() - started

    def _alarm(self, problem: str) -> None:
        with self._counting:
            self.failures += 1
        say(f"ALARM: {problem}; training continues")

    def _write(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> Checkpoint:
        self._whole.pop(checkpoint_path(self._run, state.step), None)
        checkpoint = save_checkpoint(self._run, state, model, optimizer)
        self._whole[checkpoint.path] = True
        return checkpoint

    def _remove_superseded(self, newest: Checkpoint) -> None:
        """Remove the checkpoints that the newest one supersedes, now that it is durable."""
        by_step = {checkpoint.step: checkpoint for checkpoint in find_checkpoints(self._run)}
        steps = superseded(
            self._config,
            list(by_step),
            is_whole=lambda step: self._is_whole(by_step[step]),
            epoch_of=lambda step: _epoch(by_step[step]),
        )
        for step in steps:
            if step == newest.step:
                # The ranks fell back from newer checkpoints that are whole on this rank but not on all.
                continue
            if self._copier:
                self._copier.remove(by_step[step])
            else:
                remove_folder(by_step[step].path)

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint is whole; read each one at most once, and none that this process wrote."""
        whole = self._whole.get(checkpoint.path)
        if whole is None:
            damage = find_damage(checkpoint)
            whole = self._whole.setdefault(checkpoint.path, damage is None)  # the copier's thread calls this too
            if damage:
                say(
                    f"warning: {checkpoint.path} is damaged ({damage}) and does not count among the checkpoints to keep"
                )
        return whole


def _in_background(function: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> Future[None]:
    """Call a function in a thread that ends with it.

    A thread that stays would keep the OpenMP threads that PyTorch starts for it. With more of those than CPUs, OpenMP
    puts the threads of the training to sleep at the end of each operation instead of letting them spin, and steps slow.
    """
    thread = ThreadPoolExecutor(1, "checkpoint")
    future = thread.submit(function, *arguments, **named)
    thread.shutdown(wait=False)
    return future


def _epoch(checkpoint: Checkpoint) -> float | None:
    try:
        return checkpoint.epoch
    except RunFailed:
        return None


class _Memory:
    """Memory for one copy of a run's tensors, reused by each save, and page-locked if a GPU writes into it."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._room = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def reserve(self, size_bytes: int) -> None:
        """Allocate memory and touch its pages, because the first touch costs several times as much as a copy."""
        if size_bytes > len(self._room):
            self._room = torch.empty(0, dtype=torch.uint8)  # free the old memory first
            self._room = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pinned).fill_(0)

    def copy(self, *groups: Tensors) -> list[Tensors]:
        """Start copying; from a GPU, the copies are complete after `wait`, and the GPU's next steps run after them.

        The copies keep the tensors' memory formats, so that none is rearranged while a step waits.
        """
        self.reserve(sum(_aligned(tensor.nbytes) for group in groups for tensor in group.values()))
        start = 0
        copies: list[Tensors] = []
        for group in groups:
            copies.append({})
            for name, tensor in group.items():
                shape = torch.empty_like(tensor, device="meta")
                slot = self._room[start : start + tensor.nbytes].view(tensor.dtype)
                copies[-1][name] = slot.as_strided(shape.shape, shape.stride())
                copies[-1][name].copy_(tensor.detach(), non_blocking=True)
                start += _aligned(tensor.nbytes)
        if self._pinned:
            self._copied = torch.cuda.current_stream().record_event()
        return copies

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
