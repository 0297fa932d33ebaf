"""Checkpoints: written whole or not at all, checksummed, and read without unpickling anything.

A folder `checkpoints/step-N` holds

- model.safetensors: parameters and buffers of the encoder;
- optimizer.safetensors: the optimiser's state, as `PARAMETER/KIND`;
- state.json: the position of the run (CheckpointState);
- manifest.json: size and SHA-256 of the files above, written last.

Other files in it are neither read nor minded.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from infra.errors import RunFailed, UserError, require
from infra.files import atomic_folder, require_space, sha256_file
from infra.log import say
from infra.processes import gather_objects
from ssl_core.checkpoints.tensor_file import FileRecord, write_tensors
from ssl_core.model.encoder import Backbone

MANIFEST: Final = "manifest.json"
FILES: Final = ("model.safetensors", "optimizer.safetensors", "state.json")  # all others that are read
_MODEL, _OPTIMIZER, STATE = FILES
_NAME: Final = re.compile(r"step-([0-9]+)")
_FORMAT: Final = 1
_OVERHEAD_BYTES: Final = 1 << 20  # what state, manifest and headers may need


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
class _Version:
    version: int


@dataclass(frozen=True)
class _Manifest(_Version):
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


def save_checkpoint(
    run: Path, state: CheckpointState, model: dict[str, Tensor], optimizer: dict[str, Tensor]
) -> Checkpoint:
    """Write `checkpoints/step-N` into a run folder, durably; one that has this name is replaced.

    Raises UserError when the disk is full or not writable, RunFailed when it is broken, and leaves nothing then.
    """
    path = checkpoint_path(run, state.step)
    tensors = [*model.values(), *optimizer.values()]
    require_space(path, sum(tensor.nbytes for tensor in tensors) + _OVERHEAD_BYTES)
    with atomic_folder(path) as folder:
        position = json.dumps(asdict(state), indent=1).encode()
        (folder / STATE).write_bytes(position)
        files = {
            _MODEL: write_tensors(folder / _MODEL, model),
            _OPTIMIZER: write_tensors(folder / _OPTIMIZER, optimizer),
            STATE: FileRecord(len(position), hashlib.sha256(position).hexdigest()),
        }
        (folder / MANIFEST).write_text(json.dumps(asdict(_Manifest(_FORMAT, files)), indent=1))
    return Checkpoint(path, state.step)


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
        version = msgspec.json.decode(path.read_bytes(), type=_Version).version if path.is_file() else _FORMAT
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # it is damaged
    return None if version == _FORMAT else f"of format {version}, written by another Sternum; this one reads {_FORMAT}"


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
    manifest = msgspec.json.decode((checkpoint.path / MANIFEST).read_bytes(), type=_Manifest)
    if manifest.version != _FORMAT:
        return f"it is of format {manifest.version}, this Sternum reads {_FORMAT}"
    for name in FILES:
        file, record = checkpoint.path / name, manifest.files.get(name)
        if record is None:
            return f"{MANIFEST} says nothing about {name}"
        if file.stat().st_size != record.size_bytes:
            return f"{name} has {file.stat().st_size} bytes, {record.size_bytes} were written"
        if sha256_file(file) != record.sha256:
            return f"{name} is not what was written (its SHA-256 differs)"
    for name in (_MODEL, _OPTIMIZER):
        with safe_open(checkpoint.path / name, framework="pt"):
            pass  # its header is one
    step = Checkpoint(checkpoint.path, checkpoint.step).state.step
    return None if step == checkpoint.step else f"its {STATE} is of step {step}"


def newest_whole_checkpoint(run: Path, *, speak: bool = True, verify: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint that is whole on every rank, or None when the run has none at all.

    A damaged one is passed over, with a warning on the rank that may `speak`. Ranks that see one disk need not all
    read it: those that do not `verify` take over the others' verdict. Collective: every rank of the run has to call
    it. Raises on all ranks: UserError for one of another version, RunFailed when none is whole, when ranks do not see
    the same ones, or when they cannot look.
    """
    candidates = _common_candidates(run)
    verdict = ""
    while candidates:
        checkpoint = candidates.pop()
        for version in gather_objects(other_version(checkpoint) if verify else None):
            require(version is None, f"{checkpoint.path} is {version}; take that Sternum, or another run folder")
        verdicts = gather_objects(find_damage(checkpoint) if verify else None)
        found = {rank: what for rank, what in enumerate(verdicts) if what}
        if not found:
            return checkpoint
        verdict = f"{checkpoint.path} is damaged ({_by_rank(found)})"
        if speak:
            say(f"warning: {verdict}; {'falling back to the checkpoint before it' if candidates else 'none is left'}")
    if verdict:  # to begin anew is for people to decide: an unreadable disk may be mended
        raise RunFailed(
            f"no checkpoint in {run / 'checkpoints'} is whole: {verdict}; mend the disk, or remove that folder to "
            "begin anew"
        )
    return None


def _common_candidates(run: Path) -> list[Checkpoint]:
    """Return what stands under the name of a checkpoint, oldest first, once all ranks see the same."""
    gather_objects(None)  # nobody looks before all are here: the first rank may have finished a save just now
    candidates: list[Checkpoint] = []
    try:
        candidates = named_checkpoints(run)
        seen: list[int] | str = [checkpoint.step for checkpoint in candidates]
    except RunFailed as error:
        seen = str(error)
    lists = gather_objects(seen)
    if any(other != lists[0] for other in lists):  # a network disk may list late what another machine has written
        raise RunFailed(
            f"the list of checkpoints in {run} differs between ranks: {lists}; it has to lie on a disk that all ranks "
            "share; if it does, start again"
        )
    if isinstance(seen, str):
        raise RunFailed(seen)
    return candidates


def _by_rank(found: dict[int, object]) -> str:
    """Say what ranks found, once when it is one thing."""
    if len(set(found.values())) == 1:
        return str(next(iter(found.values())))
    return "; ".join(f"rank {rank}: {what}" for rank, what in found.items())


def load_state(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model's and the optimiser's tensors, on the CPU."""
    return _read(checkpoint.path / _MODEL), _read(checkpoint.path / _OPTIMIZER)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{path} cannot be read: {error}; delete this checkpoint and start again") from error


def load_backbone(checkpoint: Checkpoint) -> Backbone:
    """Return a checkpoint's backbone on the CPU, in evaluation mode, after verifying its bytes.

    Raises RunFailed when the checkpoint is damaged, UserError when it is of another version.
    """
    version = other_version(checkpoint)
    require(version is None, f"{checkpoint.path} is {version}; take that Sternum to probe it")
    found = find_damage(checkpoint)
    if found:
        raise RunFailed(f"{checkpoint.path} is damaged: {found}; delete it, or resume the run to write it again")
    backbone = Backbone(checkpoint.state.backbone)
    tensors = _read(checkpoint.path / _MODEL)
    prefix = "backbone."
    try:
        backbone.load_state_dict(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        )
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path} does not hold a {checkpoint.state.backbone}: {error}") from error
    return backbone.eval()
