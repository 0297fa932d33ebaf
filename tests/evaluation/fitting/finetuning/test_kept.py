import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.data.features import Preprocessing
from evaluation.fitting.finetuning.kept import (
    NetworkRecord,
    keep,
    load_network,
    read_predictions,
    read_record,
)
from evaluation.fitting.finetuning.network import FinetunedNetwork, LinearHead
from infra.errors import RunFailed, UserError
from sharding.images.encoding import Encoding
from ssl_core.model.encoder import Backbone
from tests.support.tiny_resnet import TINY_RESNET

RECORD = NetworkRecord(
    identity="0" * 64,
    sternum="0.1.0",
    dataset="hospital, chexpert5",
    preset="rigorous",
    task="chexpert5",
    kind="multilabel",
    labels=["Edema", "Ödem"],
    negatives=["no Edema", "no Ödem"],
    others=False,
    thresholds=[0.1 + 0.2, 1 / 3],
    backbone=TINY_RESNET,
    features="epoch 2",
    step=10,
    input=Preprocessing(32, 0.5, 0.25, "TorchvisionExecutor", "pad", mirrored=False),
    epoch=3,
    epoch_auc=2 / 3,
    trained_epochs=5,
    set="hospital",
    set_identity="1" * 64,
    encoding=Encoding(320),
    images=80,
    options={"epochs": 5, "patience": None},
    seed=0,
)
PREDICTIONS = {"test": np.random.default_rng(0).random((2, 5)), "validation": np.empty((2, 0))}


class Planted:
    """Unpickling it creates a folder."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.bait),)


@pytest.fixture(scope="module")
def network() -> FinetunedNetwork:
    network = FinetunedNetwork(Backbone(TINY_RESNET, 32), outputs=2, size_px=32)
    random = np.random.default_rng(1)
    network.start_from(LinearHead(random.normal(size=(2, 128)), random.normal(size=2)))
    return network


@pytest.fixture
def folder(tmp_path: Path, network: FinetunedNetwork) -> Path:
    keep(tmp_path / "finetuned" / "name", RECORD, network, PREDICTIONS)
    return tmp_path / "finetuned" / "name"


def test_a_network_and_all_that_is_known_of_it_come_back_to_the_last_bit(
    folder: Path, network: FinetunedNetwork
) -> None:
    record, loaded = load_network(folder)
    assert record == RECORD
    images = torch.rand(3, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(images), network.eval()(images))
    predictions = read_predictions(folder)
    assert all(np.array_equal(predictions[part], values) for part, values in PREDICTIONS.items())
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_a_newer_network_replaces_an_older_one(folder: Path, network: FinetunedNetwork) -> None:
    keep(folder, replace(RECORD, epoch=4), network, PREDICTIONS)
    assert read_record(folder).epoch == 4


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.safetensors", "network.json", "manifest.json"])
def test_a_damaged_or_missing_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 0x80
    (folder / name).write_bytes(content)
    with pytest.raises(RunFailed, match=r"name is damaged \(.*fine-tune it again"):
        load_network(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match="holds no fine-tuned network; name a folder RUN/finetuned/NAME"):
        load_network(folder)


def test_another_format_is_refused(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match="is in format 2, and this Sternum reads format 1"):
        read_record(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "predictions.safetensors", "network.json"])
def test_a_pickle_with_a_manifest_that_vouches_for_it_is_not_executed(folder: Path, tmp_path: Path, name: str) -> None:
    content = pickle.dumps(Planted(tmp_path / "executed"))
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunFailed, match="is damaged"):
        load_network(folder) and read_predictions(folder)
    assert not (tmp_path / "executed").exists()
