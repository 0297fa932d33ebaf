"""Saving and loading the tensors of a checkpoint."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from infra.errors import RunFailed, UserError, require
from infra.storage.files import atomic_folder, require_space
from ssl_core.checkpoints.checkpoint import (
    FORMAT,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    Checkpoint,
    CheckpointState,
    FileRecord,
    Manifest,
    checkpoint_path,
    find_damage,
    other_version,
)
from ssl_core.checkpoints.tensor_file import write_tensors
from ssl_core.model.architectures import USUAL_SIZE_PX
from ssl_core.model.encoder import Backbone

_OVERHEAD_BYTES: Final = 1 << 20  # room for state, manifest and headers


def save_checkpoint(
    run: Path, state: CheckpointState, model: dict[str, Tensor], optimizer: dict[str, Tensor]
) -> Checkpoint:
    """Write `checkpoints/step-N` into a run folder, durably, and replace an existing one.

    Args:
        run: the run folder
        state: position of the run
        model: parameters and buffers by name
        optimizer: the optimizer's state, as `PARAMETER/ENTRY`

    Raises:
        UserError: if the disk is full or not writable; nothing is left behind
        RunFailed: if the disk is broken; nothing is left behind
    """
    path = checkpoint_path(run, state.step)
    tensors = [*model.values(), *optimizer.values()]
    require_space(path, sum(tensor.nbytes for tensor in tensors) + _OVERHEAD_BYTES)
    with atomic_folder(path) as folder:
        position = json.dumps(asdict(state), indent=1).encode()
        (folder / STATE).write_bytes(position)
        files = {
            MODEL: write_tensors(folder / MODEL, model),
            OPTIMIZER: write_tensors(folder / OPTIMIZER, optimizer),
            STATE: FileRecord(len(position), hashlib.sha256(position).hexdigest()),
        }
        (folder / MANIFEST).write_text(json.dumps(asdict(Manifest(FORMAT, files)), indent=1))
    return Checkpoint(path, state.step)


def load_state(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the model's and the optimizer's tensors, on the CPU.

    Raises:
        RunFailed: if a file cannot be read
    """
    return _read(checkpoint.path / MODEL), _read(checkpoint.path / OPTIMIZER)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunFailed(f"{path} cannot be read: {error}; delete this checkpoint and start again") from error


def load_backbone(checkpoint: Checkpoint) -> Backbone:
    """Return a checkpoint's backbone on the CPU, in evaluation mode, after verifying its bytes.

    Raises:
        RunFailed: if the checkpoint is damaged
        UserError: if it belongs to another version
    """
    version = other_version(checkpoint)
    require(version is None, f"{checkpoint.path} is {version}; use that version to probe it")
    damage = find_damage(checkpoint)
    if damage:
        raise RunFailed(f"{checkpoint.path} is damaged: {damage}; delete it, or resume the run to write it again")
    backbone = Backbone(checkpoint.state.backbone, checkpoint.state.config.get("views.size_px", USUAL_SIZE_PX))
    tensors = _read(checkpoint.path / MODEL)
    prefix = "backbone."
    try:
        backbone.load_state_dict(
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        )
    except RuntimeError as error:
        raise UserError(f"{checkpoint.path} does not hold a {checkpoint.state.backbone}: {error}") from error
    return backbone.eval()
