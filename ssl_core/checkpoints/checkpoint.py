"""The format of a checkpoint: how to find, verify and describe one.

A folder `checkpoints/step-N` is written whole or not at all, and read without unpickling anything. It holds

- model.safetensors: parameters and buffers of the encoder
- optimizer.safetensors: the optimizer's state, as `PARAMETER/KIND`
- state.json: the position of the run (CheckpointState)
- manifest.json: size and SHA-256 of the files above, written last

Other files in the folder are ignored. This module imports no torch, so that a supervisor stays small; `tensors` saves
and loads, `newest` chooses the checkpoint that all ranks resume from.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import SafetensorError, safe_open

from infra.errors import RunFailed
from infra.files import sha256_file

MANIFEST: Final = "manifest.json"
FILES: Final = ("model.safetensors", "optimizer.safetensors", "state.json")  # all others that are read
MODEL, OPTIMIZER, STATE = FILES
_NAME: Final = re.compile(r"step-([0-9]+)")
FORMAT: Final = 1


@dataclass(frozen=True)
class CheckpointState:
    """Where a run stands. `step` steps are done; the next sample is number step x global batch of the order.

    pixel_mean and pixel_std are the normalisation that the backbone was trained with, on the scale 0 to 1.
    samples_masked counts those left out as damaged, masked_in_epoch those of the epoch under way. config is what
    determines the result (`pretraining.resume.what_computes`), None in checkpoints that are older than this field.
    """

    step: int
    epoch: float
    backbone: str
    data_identity: str
    pixel_mean: float
    pixel_std: float
    world_size: int
    sternum_version: str
    torch_version: str
    samples_masked: int = 0
    masked_in_epoch: int = 0
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class FileRecord:
    """The size and hash of a file when it was written."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class _Version:
    version: int


@dataclass(frozen=True)
class Manifest(_Version):
    """The content of manifest.json: one record for each file."""

    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, after `step` optimisation steps; whether its bytes are whole, `find_damage` tells."""

    path: Path
    step: int

    @cached_property
    def state(self) -> CheckpointState:
        """The position of the run; raises RunFailed when it cannot be read."""
        try:
            return msgspec.json.decode((self.path / STATE).read_bytes(), type=CheckpointState)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunFailed(f"{self.path / STATE} cannot be read ({error}); delete this checkpoint") from error

    @property
    def epoch(self) -> float:
        """Epochs done: a whole number, up to the part of a global batch that belongs to the next."""
        return self.state.epoch


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder that a run's checkpoint after `step` steps has."""
    return run / "checkpoints" / f"step-{step}"


def step_of(name: str) -> int | None:
    """Return the step of a checkpoint's folder by its name, None for other names."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the finished checkpoints of a run, oldest first. Their bytes are checked when they are read."""
    return [checkpoint for checkpoint in named_checkpoints(run) if (checkpoint.path / MANIFEST).exists()]


def named_checkpoints(run: Path) -> list[Checkpoint]:
    """Return all that stands under the name of a checkpoint, oldest first; raises RunFailed when that is unreadable."""
    folder = run / "checkpoints"
    try:
        steps = [(step_of(path.name), path) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFailed(f"{folder} cannot be read: {error}; without it the run cannot go on") from error
    return sorted(
        (Checkpoint(path, step) for step, path in steps if step is not None), key=lambda checkpoint: checkpoint.step
    )


def other_version(checkpoint: Checkpoint) -> str | None:
    """Return of which version a checkpoint is when this Sternum cannot read it; None also when nothing says so."""
    path = checkpoint.path / MANIFEST
    try:
        version = msgspec.json.decode(path.read_bytes(), type=_Version).version if path.is_file() else FORMAT
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # it is damaged
    return None if version == FORMAT else f"of format {version}, written by another Sternum; this one reads {FORMAT}"


def find_damage(checkpoint: Checkpoint) -> str | None:
    """Compare a checkpoint's files with its manifest; returns what differs, or None when all is as it was written."""
    try:
        return _difference(checkpoint)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, SafetensorError, RunFailed) as error:
        return f"{type(error).__name__}: {error}"


def _difference(checkpoint: Checkpoint) -> str | None:
    for name in (MANIFEST, *FILES):
        if not (checkpoint.path / name).is_file():
            return f"{name} is missing"
    manifest = msgspec.json.decode((checkpoint.path / MANIFEST).read_bytes(), type=Manifest)
    if manifest.version != FORMAT:
        return f"it is of format {manifest.version}, this Sternum reads {FORMAT}"
    for name in FILES:
        file, record = checkpoint.path / name, manifest.files.get(name)
        if record is None:
            return f"{MANIFEST} says nothing about {name}"
        if file.stat().st_size != record.size_bytes:
            return f"{name} has {file.stat().st_size} bytes, {record.size_bytes} were written"
        if sha256_file(file) != record.sha256:
            return f"{name} is not what was written (its SHA-256 differs)"
    for name in (MODEL, OPTIMIZER):
        with safe_open(checkpoint.path / name, framework="numpy"):
            pass  # its header is one
    step = Checkpoint(checkpoint.path, checkpoint.step).state.step
    return None if step == checkpoint.step else f"its {STATE} is of step {step}"
