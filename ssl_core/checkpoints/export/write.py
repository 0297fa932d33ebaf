"""Writes the weights of an export in each form, and compares each form's features with those of the trained network."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from infra.errors import RunFailed
from infra.extras import has_extra
from infra.storage.files import sha256_file
from infra.storage.json_files import encode_json
from ssl_core.checkpoints.checkpoint import FileRecord
from ssl_core.checkpoints.export.check import TOLERANCE, Reference, features_of, reference
from ssl_core.checkpoints.export.folder import CONTENTS, PREPARATION, WEIGHTS, Contents, Preparation
from ssl_core.checkpoints.export.weights import with_channels
from ssl_core.checkpoints.tensor_file import write_tensors
from ssl_core.model.architectures import Network, build_network


@dataclass(frozen=True)
class Forms:
    """The forms in which an export holds a network.

    Attributes:
        network: the network with the channels of the export
        timm: the folder that timm and transformers load, relative to the export; None if there is none
        not_in_timm: why there is none
        onnx: whether there is an ONNX file
    """

    network: Network
    timm: Path | None
    not_in_timm: str
    onnx: bool


def write_forms(folder: Path, trained: Network, preparation: Preparation, *, onnx: bool, what: str) -> Forms:
    """Write a network in each form.

    Args:
        folder: the export, empty so far
        trained: the network for one channel, in evaluation mode
        preparation: how an image becomes the input
        onnx: whether to write an ONNX file, which needs the extra `onnx`
        what: the option of the channels with its value, for messages

    Raises:
        UserError: if the network cannot have this number of channels, or its features are not finite
        RunFailed: if the features of a form differ
    """
    size_px, channels = preparation.size_px, preparation.channels
    expected = reference(trained, size_px, channels)
    network = with_channels(trained, size_px, channels, what)
    write_tensors(folder / WEIGHTS, network.module.state_dict())
    (folder / PREPARATION).write_bytes(encode_json(preparation))
    _check_weights(folder / WEIGHTS, network, size_px, expected)
    timm, not_in_timm = _write_timm(folder, network, preparation, expected)
    if onnx:
        from ssl_core.checkpoints.export.onnx_file import write_onnx  # noqa: PLC0415

        write_onnx(folder, network.module, expected)
    return Forms(network, timm, not_in_timm, onnx)


def write_contents(folder: Path, contents: Contents) -> None:
    """Write export.json with the size and hash of each file that is in the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): FileRecord(path.stat().st_size, sha256_file(path)) for path in paths}
    (folder / CONTENTS).write_bytes(encode_json(replace(contents, files=files)))


def _check_weights(path: Path, network: Network, size_px: int, expected: Reference) -> None:
    """Load the written weights by their names into a new network, as a user does."""
    with torch.random.fork_rng(devices=[]):
        fresh = build_network(network.name, size_px, expected.images.shape[1])
    fresh.module.load_state_dict(load_file(path))
    if expected.difference(features_of(fresh.module, expected.images)) > 1:
        raise RunFailed(
            f"the exported weights of {network.name} give other features than the checkpoint, by more than "
            f"{TOLERANCE:g}; please report this with the name of the network"
        )


def _write_timm(
    folder: Path, network: Network, preparation: Preparation, expected: Reference
) -> tuple[Path | None, str]:
    if not has_extra("timm"):
        return None, 'timm is not installed; pip install "sternum[timm]"'
    from ssl_core.checkpoints.export.timm_folder import NotInTimm, write_timm  # noqa: PLC0415

    try:
        return write_timm(folder, network, preparation, expected).relative_to(folder), ""
    except NotInTimm as reason:
        return None, str(reason)
