"""The format of a checkpoint: how to find, verify and describe one.

A folder `checkpoints/step-N` is written whole or not at all, and read without unpickling anything. It holds

- model.safetensors: parameters and buffers of the encoder
- optimizer.safetensors: the optimizer's state, as `PARAMETER/ENTRY`
- state.json: the position of the run (CheckpointState)
- manifest.json: size and SHA-256 of the files above, written last

Other files in the folder are ignored. This module imports no torch, so that a supervisor stays small; `tensors` saves
and loads, `newest` chooses the checkpoint that all ranks resume from.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open

from infra.errors import RunFailed
from infra.storage.files import sha256_file
from infra.storage.json_files import BadJson, read_json
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.computation import Computation

MANIFEST: Final = "manifest.json"
FILES: Final = ("model.safetensors", "optimizer.safetensors", "state.json")  # the manifest lists them
MODEL, OPTIMIZER, STATE = FILES
_NAME: Final = re.compile(r"step-([0-9]+)")
FORMAT: Final = 1


@dataclass(frozen=True)
class CheckpointState:
    """The position of a run.

    Attributes:
        step: steps done; the next sample is number step x global batch of the order
        epoch: epochs done
        backbone: name of the network, as in model.backbone
        data_identity: identity of the shards' content
        pixel_mean: pixel mean of the normalization that the backbone was trained with, on the scale 0 to 1
        pixel_std: standard deviation, likewise
        world_size: ranks
        sternum_version: version that wrote the checkpoint
        torch_version: of torch, likewise
        samples_masked: damaged samples left out so far
        masked_in_epoch: damaged samples left out in the current epoch
        config: settings that determine the result (`pretraining.resume.fixed_settings`)
        size_px: width and height of the views of the last step; None in checkpoints of versions without stages, all of
            whose views had the size in `config`
        shards: folders or URLs of the shards, as in data.shards; empty in checkpoints of older versions
        ancestors: the weights that the run descends from, the latest first; none if it began with random ones
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
    config: dict[str, Any] = field(default_factory=dict)
    size_px: int | None = None
    shards: list[str] = field(default_factory=list)
    ancestors: list[Ancestor] = field(default_factory=list)

    @property
    def computation(self) -> Computation:
        """What the run computes."""
        return Computation(self.config, self.data_identity)

    def lineage(self, weights: str, sha256: str) -> list[Ancestor]:
        """Return what a run descends from that begins with this checkpoint's weights, the latest first.

        Args:
            weights: the file with the weights
            sha256: its hash
        """
        splits, percent = self.config.get("data.splits", []), self.config.get("data.fraction_percent", 100)
        latest = Ancestor(weights, sha256, self.epoch, self.data_identity, self.shards, splits, percent)
        return [latest, *self.ancestors]


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
    """A checkpoint on disk after `step` optimization steps; `find_damage` verifies its bytes."""

    path: Path
    step: int

    @cached_property
    def state(self) -> CheckpointState:
        """The position of the run; RunFailed if the file cannot be read."""
        try:
            return read_json(self.path / STATE, CheckpointState)
        except (FileNotFoundError, BadJson) as error:
            raise RunFailed(f"{self.path / STATE} cannot be read ({error}); delete this checkpoint") from error

    @property
    def epoch(self) -> float:
        """Epochs done; not whole at the end of an epoch if its last global batch reaches into the next epoch."""
        return self.state.epoch


def checkpoint_path(run: Path, step: int) -> Path:
    """Return the folder of a run's checkpoint after `step` steps."""
    return run / "checkpoints" / f"step-{step}"


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint's folder; None for other names."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else None


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the finished checkpoints of a run, oldest first, without checking their bytes."""
    return [checkpoint for checkpoint in named_checkpoints(run) if (checkpoint.path / MANIFEST).exists()]


def named_checkpoints(run: Path) -> list[Checkpoint]:
    """Return everything with the name of a checkpoint, finished or not, oldest first.

    Raises:
        RunFailed: if the folder cannot be read
    """
    folder = run / "checkpoints"
    try:
        steps = [(step_of(path.name), path) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFailed(f"{folder} cannot be read: {error}; the run needs it to resume") from error
    return sorted(
        (Checkpoint(path, step) for step, path in steps if step is not None), key=lambda checkpoint: checkpoint.step
    )


def other_version(checkpoint: Checkpoint) -> str | None:
    """Return the format of a checkpoint that this Sternum cannot read; None if it can, or if the format is unknown."""
    path = checkpoint.path / MANIFEST
    try:
        version = read_json(path, _Version).version
    except (FileNotFoundError, BadJson):
        return None  # damaged: see `find_damage`
    return (
        None if version == FORMAT else f"in format {version} of another Sternum version; this one reads format {FORMAT}"
    )


def find_damage(checkpoint: Checkpoint) -> str | None:
    """Compare a checkpoint's files with its manifest; return what differs, or None if it is whole."""
    try:
        return _difference(checkpoint)
    except BadJson as error:
        return f"its {MANIFEST} cannot be read: {error}"
    except (OSError, SafetensorError, RunFailed) as error:
        return f"{type(error).__name__}: {error}"


def _difference(checkpoint: Checkpoint) -> str | None:
    for name in (MANIFEST, *FILES):
        if not (checkpoint.path / name).is_file():
            return f"{name} is missing"
    manifest = read_json(checkpoint.path / MANIFEST, Manifest)
    if manifest.version != FORMAT:
        return f"its format is {manifest.version}, this Sternum reads {FORMAT}"
    for name in FILES:
        file, record = checkpoint.path / name, manifest.files.get(name)
        if record is None:
            return f"{MANIFEST} does not list {name}"
        if file.stat().st_size != record.size_bytes:
            return f"{name} has {file.stat().st_size} bytes instead of {record.size_bytes}"
        if sha256_file(file) != record.sha256:
            return f"the SHA-256 of {name} differs"
    for name in (MODEL, OPTIMIZER):
        with safe_open(checkpoint.path / name, framework="numpy"):
            pass  # the header is valid
    step = Checkpoint(checkpoint.path, checkpoint.step).state.step  # not the cached one
    return None if step == checkpoint.step else f"its {STATE} belongs to step {step}"
