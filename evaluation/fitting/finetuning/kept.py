"""The folder of a fine-tuned network, `RUN/finetuned/NAME`.

It is written whole or not at all, and read without unpickling anything. It holds

- model.safetensors: parameters and buffers, `backbone.` and `head.`
- predictions.safetensors: probabilities of the validation and the test images
- network.json: what the network is, what it was trained on, and its thresholds (NetworkRecord)
- manifest.json: size and SHA-256 of the files above
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.numpy
from safetensors import SafetensorError
from safetensors.torch import load_file

from evaluation.data.features import Preprocessing
from evaluation.fitting.finetuning.network import FinetunedNetwork
from evaluation.results.tasks import Kind
from infra.arrays import Float64
from infra.errors import RunFailed, UserError, require
from infra.storage.files import atomic_folder, read_regular, regular_size, require_space, sha256_file
from infra.storage.json_files import BadJson, encode_json, read_json
from sharding.images.encoding import Encoding
from ssl_core.checkpoints.checkpoint import FileRecord, Manifest
from ssl_core.checkpoints.tensor_file import write_tensors
from ssl_core.model.encoder import Backbone

MODEL: Final = "model.safetensors"
PREDICTIONS: Final = "predictions.safetensors"
NETWORK: Final = "network.json"
MANIFEST: Final = "manifest.json"
FORMAT: Final = 1
_OVERHEAD_BYTES: Final = 1 << 20  # room for the JSON files and headers


@dataclass(frozen=True)
class NetworkRecord:
    """What a fine-tuned network is.

    Attributes:
        identity: hash of everything that the network depends on
        sternum: version that trained it
        dataset: label of the labeled set and its task in the tables
        preset: name of the preset that divided them
        task: name of the task
        kind: binary or multilabel, whose outputs become probabilities by the logistic function; multiclass, by softmax
        labels: the label of each output, in their order
        negatives: what the label is told from
        others: whether there is one more output behind those of the labels, for images of other classes
        thresholds: above it, the probability of a label is called positive
        backbone: name of the network, as in model.backbone
        features: the checkpoint that training started from, as in the tables
        step: step of that checkpoint
        input: input of the backbone; logits are the means over its views
        epoch: the epoch whose weights these are, counted from 1
        epoch_auc: mean AUC over the labels of this epoch, on the images that chose it
        trained_epochs: epochs until training ended
        set: name of the labeled set
        set_identity: hash of the packed images
        encoding: how the images of the set were packed
        images: images that taught
        options: options of the fine-tuning
        seed: seed of order and views
    """

    identity: str
    sternum: str
    dataset: str
    preset: str
    task: str
    kind: Kind
    labels: list[str]
    negatives: list[str]
    others: bool
    thresholds: list[float]
    backbone: str
    features: str
    step: int | None
    input: Preprocessing
    epoch: int
    epoch_auc: float
    trained_epochs: int
    set: str
    set_identity: str
    encoding: Encoding
    images: int
    options: dict[str, Any]
    seed: int


def keep(folder: Path, record: NetworkRecord, network: FinetunedNetwork, predictions: Mapping[str, Float64]) -> None:
    """Write the folder of a network, durably, and replace an existing one.

    Args:
        folder: the folder
        record: what the network is
        network: the network
        predictions: (Q, m) probability of each label for the images of each part, by the name of the part

    Raises:
        UserError: if the disk is full or not writable; nothing is left behind
    """
    state = network.state_dict()
    contents = {NETWORK: encode_json(record), PREDICTIONS: safetensors.numpy.save(dict(predictions))}
    size_bytes = sum(tensor.nbytes for tensor in state.values()) + sum(map(len, contents.values()))
    require_space(folder, size_bytes + _OVERHEAD_BYTES)
    with atomic_folder(folder) as partial:
        files = {MODEL: write_tensors(partial / MODEL, state)}
        for name, content in contents.items():
            (partial / name).write_bytes(content)
            files[name] = FileRecord(len(content), hashlib.sha256(content).hexdigest())
        (partial / MANIFEST).write_bytes(encode_json(Manifest(FORMAT, files)))


def read_record(folder: Path) -> NetworkRecord:
    """Return what a network is, after verifying the bytes of all files in its folder.

    Raises:
        UserError: if the folder holds no network, or one of another version
        RunFailed: if it is damaged
    """
    try:
        manifest = read_json(folder / MANIFEST, Manifest)
        require(
            manifest.version == FORMAT,
            f"{folder} is in format {manifest.version}, and this Sternum reads format {FORMAT}; fine-tune it again",
        )
        for name in (MODEL, PREDICTIONS, NETWORK):
            size_bytes = regular_size(folder / name)
            if FileRecord(size_bytes, sha256_file(folder / name)) != manifest.files.get(name):
                raise _damaged(folder, f"{name} is not the file that {MANIFEST} lists")
        return read_json(folder / NETWORK, NetworkRecord)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no fine-tuned network; name a folder RUN/finetuned/NAME") from error
    except (OSError, BadJson) as error:
        raise _damaged(folder, str(error)) from error


def read_predictions(folder: Path) -> dict[str, Float64]:
    """Return the probabilities (Q, m) of each part from a folder that `read_record` verified."""
    try:
        return safetensors.numpy.load(read_regular(folder / PREDICTIONS))
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, str(error)) from error


def load_network(folder: Path) -> tuple[NetworkRecord, FinetunedNetwork]:
    """Return what a network is, and the network on the CPU, in evaluation mode.

    Raises:
        UserError, RunFailed: like `read_record`
    """
    record = read_record(folder)
    backbone = Backbone(record.backbone, record.input.size_px)
    network = FinetunedNetwork(backbone, len(record.labels) + record.others, record.input.size_px)
    try:
        network.load_state_dict(load_file(folder / MODEL))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _damaged(folder, " ".join(str(error).split())) from error
    return record, network.eval()


def _damaged(folder: Path, reason: str) -> RunFailed:
    return RunFailed(f"{folder} is damaged ({reason}); fine-tune it again")
