"""Checkpoints written beside the training: a step waits for a copy in memory, not for the disk."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Final

import torch
from torch import Tensor

from infra.errors import RunFailed, UserError
from infra.files import remove_folder, remove_remains
from infra.log import say
from ssl_core.checkpoints.checkpoint import Checkpoint, CheckpointState, checkpoint_path, find_checkpoints, find_damage
from ssl_core.checkpoints.copier import CheckpointCopier
from ssl_core.checkpoints.mirror import Mirror
from ssl_core.checkpoints.retention import CheckpointConfig, superseded
from ssl_core.checkpoints.tensors import save_checkpoint

_TROUBLE: Final = (OSError, UserError, RunFailed)  # what a disk or a network may do; all else is an error of ours
_ALIGNMENT: Final = 64  # bytes
_COPY_THREADS: Final = 2

Tensors = dict[str, Tensor]


class CheckpointWriter(AbstractContextManager["CheckpointWriter"]):
    """Saves a run's checkpoints and removes those that are superseded; on the rank that holds the run's lock.

    What disk or network do to a save in the background does not end the training: an alarm is said, the older
    checkpoints stand, and `failures` counts it. Leaving the context waits for the save and the copies under way, and
    raises RunFailed when the mirror, if there is one, is not in line then.

    Attributes:
        failures: saves in the background, and updates of the mirror, that failed
        wait_s: how long the newest call of `save` held up its caller
        save_s: how long the newest finished save took, from that call on
    """

    def __init__(self, run: Path, config: CheckpointConfig, device: torch.device, expected_bytes: int = 0) -> None:
        """Remove what a killed process left of a save, and set memory aside in the background.

        device: where the tensors will come from. expected_bytes: what one save will hold; what is missing of it, the
        first save has to wait for.
        """
        remove_remains(run / "checkpoints")
        self.failures = 0
        self._counting = Lock()
        self.wait_s = self.save_s = 0.0
        self._run = run
        self._config = config
        self._writing: int | None = None  # the step of the newest save
        self._whole: dict[Path, bool] = {}
        self._copier = (
            CheckpointCopier(run, config, Mirror(config.mirror), self._is_whole, self._alarm) if config.mirror else None
        )
        self._memory = _Memory(device)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] = self._thread.submit(self._memory.reserve, expected_bytes)

    def save(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
        """Copy the tensors and write the checkpoint in the background; waits for an earlier save that is under way."""
        started = time.perf_counter()
        self._join(state.step)
        model, optimizer = self._memory.copy(model, optimizer)
        self._pending = self._thread.submit(self._save_in_background, started, state, model, optimizer)
        self.wait_s = time.perf_counter() - started

    def save_now(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> Checkpoint:
        """Return when the checkpoint is durable: the last one of a process. For its copy, leaving the context waits.

        Raises RunFailed when it cannot be, also for a full disk: with room again, the same command goes on.
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
        """Wait for the save under way, and for the copies."""
        try:
            self._pending.result()
        finally:
            self._thread.shutdown()
            self._memory.close()
            if self._copier:
                self._copier.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self._copier and kind is None:  # a run with nothing left to do but this must not count as finished
            self._copier.require_done()

    def _join(self, step: int) -> None:
        """Wait for the save under way, or at first for the memory."""
        if self._writing is not None and not self._pending.done():
            say(f"the checkpoint of step {step} waits for that of step {self._writing}, which is still being written")
        self._pending.result()
        self._writing = step

    def _save_in_background(self, started: float, state: CheckpointState, model: Tensors, optimizer: Tensors) -> None:
        try:
            self._memory.wait()
            checkpoint = self._write(state, model, optimizer)
        except _TROUBLE as error:
            self._alarm(f"the checkpoint of step {state.step} is not saved, the older ones stand: {error}")
            return
        try:
            self._remove_superseded(checkpoint)
        except _TROUBLE as error:
            self._alarm(f"{checkpoint.path} is saved, but what it supersedes is not removed: {error}")
        if self._copier:
            self._copier.update(state.step)
        self.save_s = time.perf_counter() - started

    def _alarm(self, what: str) -> None:
        with self._counting:
            self.failures += 1
        say(f"ALARM: {what}; training goes on")

    def _write(self, state: CheckpointState, model: Tensors, optimizer: Tensors) -> Checkpoint:
        self._whole.pop(checkpoint_path(self._run, state.step), None)
        checkpoint = save_checkpoint(self._run, state, model, optimizer)
        self._whole[checkpoint.path] = True
        return checkpoint

    def _remove_superseded(self, newest: Checkpoint) -> None:
        """Remove what the newest checkpoint supersedes, now that it is durable."""
        found = {checkpoint.step: checkpoint for checkpoint in find_checkpoints(self._run)}
        steps = superseded(
            self._config,
            list(found),
            is_whole=lambda step: self._is_whole(found[step]),
            epoch_of=lambda step: _epoch(found[step]),
        )
        for step in steps:
            if step == newest.step:
                continue  # though it was saved after going back from others that are whole for this rank alone
            if self._copier:
                self._copier.remove(found[step])
            else:
                remove_folder(found[step].path)

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        """Say whether a checkpoint is whole, reading each once that this process did not write."""
        whole = self._whole.get(checkpoint.path)
        if whole is None:
            found = find_damage(checkpoint)
            whole = self._whole.setdefault(checkpoint.path, found is None)  # the copier asks too
            if found:
                say(f"warning: {checkpoint.path} is damaged ({found}) and does not count among those to keep")
        return whole


def _epoch(checkpoint: Checkpoint) -> float | None:
    try:
        return checkpoint.epoch
    except RunFailed:
        return None


class _Memory:
    """Room for one copy of a run's tensors, used again for each save, and page-locked where a GPU writes into it."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        # One thread does not fill the memory bus, and the other ranks wait meanwhile.
        self._threads = ThreadPoolExecutor(_COPY_THREADS, "checkpoint-copy")
        self._room = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def reserve(self, size_bytes: int) -> None:
        """Get room; the pages are touched, since the first touch costs several times what a copy does."""
        if size_bytes > len(self._room):
            self._room = torch.empty(0, dtype=torch.uint8)  # give the old room back first
            self._room = torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pinned).fill_(0)

    def copy(self, *groups: Tensors) -> list[Tensors]:
        """Start copying; from a GPU the copies are complete after `wait`, and its next steps come behind them.

        The copies have the memory formats of the tensors, so that none is rearranged while a step waits.
        """
        self.reserve(sum(_aligned(tensor.nbytes) for group in groups for tensor in group.values()))
        start = 0
        copies: list[Tensors] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        for group in groups:
            copies.append({})
            for name, tensor in group.items():
                shape = torch.empty_like(tensor, device="meta")
                place = self._room[start : start + tensor.nbytes].view(tensor.dtype)
                copies[-1][name] = place.as_strided(shape.shape, shape.stride())
                pairs.append((copies[-1][name], tensor.detach()))
                start += _aligned(tensor.nbytes)
        if self._pinned:  # from this thread, whose stream the training's kernels are in
            for place, tensor in pairs:
                place.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.current_stream().record_event()
        else:
            list(self._threads.map(lambda pair: pair[0].copy_(pair[1]), pairs))
        return copies

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def wait(self) -> None:
        """Wait until the copies are complete."""
        if self._copied is not None:
            self._copied.synchronize()


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
