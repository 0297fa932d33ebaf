"""Checkpoints: written whole or not at all, checksummed, and read without unpickling anything.

A folder `checkpoints/step-N` holds

- model.safetensors: parameters and buffers of the encoder;
- optimizer.safetensors: Adam's moments, by parameter name;
- state.json: the position of the run (CheckpointState);
- manifest.json: size and SHA-256 of the files above, written last.
"""

import json
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from infra.errors import RunFailed, UserError
from infra.files import atomic_folder, sha256_file
from infra.log import say
from infra.processes import gather_objects, require_same
from ssl_core.model import Backbone

_MODEL: Final = "model.safetensors"
_OPTIMIZER: Final = "optimizer.safetensors"
_STATE: Final = "state.json"
_MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class CheckpointState:
    """Where a run stands. `step` steps are done; the next sample is number step x global batch of the order.

    pixel_mean and pixel_std are the normalisation that the backbone was trained with, on the scale 0 to 1.
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, after `step` optimisation steps; whether its bytes are whole, `damage` tells."""

    path: Path
    step: int

    @cached_property
    def state(self) -> CheckpointState:
        """The position of the run; raises RunFailed when it cannot be read."""
        try:
            return msgspec.json.decode((self.path / _STATE).read_bytes(), type=CheckpointState)
        except (OSError, msgspec.DecodeError) as error:
            raise RunFailed(f"{self.path / _STATE} cannot be read ({error}); delete this checkpoint") from error

    @property
    def epoch(self) -> float:
        """Epochs done: a whole number, up to the part of a global batch that belongs to the next."""
        return self.state.epoch


def save_checkpoint(
    run: Path, state: CheckpointState, model: dict[str, Tensor], optimizer: dict[str, Tensor]
) -> Checkpoint:
    """Write `checkpoints/step-N` into a run folder; raises UserError when the disk is full, and leaves nothing then."""
    path = run / "checkpoints" / f"step-{state.step}"
    with atomic_folder(path) as folder:
        # Through memory, since safetensors' own writing hides a full disk behind an error of its own.
        (folder / _MODEL).write_bytes(save(_plain(model)))
        (folder / _OPTIMIZER).write_bytes(save(_plain(optimizer)))
        (folder / _STATE).write_text(json.dumps(asdict(state), indent=1))
        files = {
            file.name: {"size_bytes": file.stat().st_size, "sha256": sha256_file(file)}
            for file in sorted(folder.iterdir())
        }
        (folder / _MANIFEST).write_text(json.dumps({"version": 1, "files": files}, indent=1))
    return Checkpoint(path, state.step)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU in row-major order, which is what safetensors stores."""
    return {name: value.detach().to("cpu", memory_format=torch.contiguous_format) for name, value in tensors.items()}


def find_checkpoints(run: Path) -> list[Checkpoint]:
    """Return the finished checkpoints of a run, oldest first. Their bytes are checked when they are read."""
    folders = [path.parent for path in (run / "checkpoints").glob(f"step-*/{_MANIFEST}")]
    named = [(_NAME.fullmatch(folder.name), folder) for folder in folders]
    checkpoints = [Checkpoint(folder, int(name.group(1))) for name, folder in named if name]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def damage(checkpoint: Checkpoint) -> str | None:
    """Compare a checkpoint's files with its manifest; returns what differs, or None when all is as it was written."""
    try:
        files = json.loads((checkpoint.path / _MANIFEST).read_bytes())["files"]
        for name in (_MODEL, _OPTIMIZER, _STATE):
            if sha256_file(checkpoint.path / name) != files[name]["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def newest_whole_checkpoint(run: Path, *, speak: bool = True) -> Checkpoint | None:
    """Return the newest checkpoint whose bytes every rank has verified, or None when there is none.

    A damaged one is passed over, with a warning on the rank that may `speak`. Collective: every rank of the run has to
    call it. Raises UserError on all ranks when they do not see the same checkpoints.
    """
    candidates = find_checkpoints(run)
    require_same([checkpoint.step for checkpoint in candidates], f"the list of checkpoints in {run}")
    while candidates:
        checkpoint = candidates.pop()
        found = {rank: what for rank, what in enumerate(gather_objects(damage(checkpoint))) if what}
        if not found:
            return checkpoint
        if speak:
            say(f"warning: {checkpoint.path} is damaged ({found}); falling back to the checkpoint before it")
    return None


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

    Raises RunFailed when the checkpoint is damaged.
    """
    found = damage(checkpoint)
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
