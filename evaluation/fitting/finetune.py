"""Fine-tuning end to end, beside the frozen probe: how far a backbone's weights lead, rather than its features."""

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from evaluation.data.features import Hashes, Preprocessing
from infra.errors import RunFailed, require
from infra.log import progress
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from ssl_core.model.optimizer import OptimConfig, build_optimizer, learning_rate_at
from ssl_core.views.batches import Batch, WholeImage, image_batches, training_batches
from ssl_core.views.spec import ViewSpec

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LEAST_CROP_AREA: Final = 0.5  # a label is of the whole image: a crop must not leave the lesion out
_SHUFFLE_WINDOW: Final = 16384


@dataclass(frozen=True)
class FinetuneConfig:
    """How a backbone is trained on with labels.

    Args:
        epochs: passes over the development images less those of fold 0, which choose the epoch; 0 for no fine-tuning
        learning_rate: of AdamW, at the first step; falls to zero as a cosine
        weight_decay: of AdamW; biases and norms are left out
        local_batch: images a step
    """

    epochs: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    local_batch: int = 64

    def __post_init__(self) -> None:
        require(self.epochs >= 0, f"finetune.epochs={self.epochs} must not be negative; use 10")
        require(
            0 < self.learning_rate < math.inf,
            f"finetune.learning_rate={self.learning_rate} must be positive and finite; use 0.0001",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"finetune.weight_decay={self.weight_decay} must be finite and not negative; use 0.05",
        )
        require(
            self.local_batch >= 2,
            f"finetune.local_batch={self.local_batch} must be at least 2, since batch norm compares images; use 64",
        )


@dataclass(frozen=True)
class FinetunedNetwork:
    """What the network of the chosen epoch says.

    probabilities: (t,) of the positive class, of the test images in the order of the rows with fold -1. validation:
    (v,) the same of the validation images; validation_rows: (v,) which of the n rows these are. epoch: the one chosen,
    counted from 1, by validation_auc.
    """

    probabilities: Floats
    validation: Floats
    validation_rows: Ints
    epoch: int
    validation_auc: float


def finetune(
    backbone: nn.Module,
    shards: ShardSet,
    *,
    ids: Hashes,
    classes: Ints,
    fold: Ints,
    spec: ViewSpec,
    preprocessing: Preprocessing,
    config: FinetuneConfig,
    kind: str,
    device: torch.device,
    seed: int,
) -> FinetunedNetwork:
    """Train a copy of the backbone with a linear head, choose the epoch on fold 0, and score the test part once.

    ids: (n,) the samples of the task; classes: (n,) 1 positive, 0 negative; fold: (n,) from 0 in the development part,
    -1 in the test part. spec: the views of the pretraining, whose crops are made larger. preprocessing: of the images
    that are scored, and what training views are normalised by. kind: the executor's. seed: of order and views; the head
    starts at zero. On a CPU the result is the same for a seed at the same number of threads.

    Training reads the images of the folds from 1 on and no others; the network is shown none of the test part before
    it is scored. Of equal epochs the first is chosen. Raises RunFailed when training diverges or an image is damaged.
    """
    training, validation, test = (np.flatnonzero(part) for part in (fold > 0, fold == 0, fold < 0))
    assert config.epochs > 0, "who asks for no epoch does not fine-tune"
    assert set(classes[training]) == set(classes[validation]) == {0, 1}, "every fold has both classes"
    order = _PartOrder(shards, ids[training], min(config.local_batch, len(training)), seed)
    ends = [order.first_step_after_epoch(epoch) for epoch in range(config.epochs)]
    model = _Classifier(backbone, spec.size_px).to(memory_format=torch.channels_last).to(device)
    learn = _learner(model, shards, ids[training], classes[training], preprocessing, config, steps=ends[-1])
    views = replace(spec, crop_area=(max(spec.crop_area[0], _LEAST_CROP_AREA), 1.0))

    numbers = _numbers(shards, ids)

    def predict(chosen: Ints) -> Floats:
        batches = image_batches(
            shards,
            WholeImage(preprocessing.size_px),
            numbers=np.sort(numbers[chosen]),
            local_batch=config.local_batch,
            mean=preprocessing.mean,
            std=preprocessing.std,
            view_executor=kind,
            device=device,
        )
        total = -(-len(chosen) // config.local_batch)
        with closing(batches):
            return _predict(model, progress(batches, "scoring", total, unit="batch"), ids[chosen], config)

    best = _Epoch(0, -1.0, np.empty(0), {})
    with closing(training_batches(shards, order, views, seed=seed, view_executor=kind, device=device)) as batches:
        for batch in progress(islice(batches, ends[-1]), "fine-tuning", ends[-1], unit="batch"):
            learn(batch)
            if batch.step + 1 in ends:
                said = predict(validation)
                auc = float(roc_auc_score(classes[validation], said))
                if auc > best.auc:
                    best = _Epoch(ends.index(batch.step + 1) + 1, auc, said, deepcopy(model.state_dict()))
    assert best.number, "the last step ends an epoch"
    model.load_state_dict(best.weights)
    return FinetunedNetwork(predict(test), best.said, validation, best.number, best.auc)


class _Epoch(NamedTuple):
    """What the network said of the validation images after an epoch, and its weights then."""

    number: int
    auc: float
    said: Floats
    weights: dict[str, Tensor]


class _PartOrder(SampleOrder):
    """The order of some of the samples, each once an epoch: no other is read, and every batch is full of them.

    A task may be about one image in forty; leaving the others out of batches of all would make steps of one or two.
    """

    def __init__(self, shards: ShardSet, chosen: Hashes, global_batch: int, seed: int) -> None:
        rows = [np.flatnonzero(np.isin(shards.index(shard)["sample"], chosen)) for shard in range(len(shards.shards))]
        counts = np.array([len(of_shard) for of_shard in rows])
        assert counts.sum() == len(chosen), "every image of the task lies in the shards, once"
        super().__init__(counts, lanes=1, global_batch=global_batch, window=_SHUFFLE_WINDOW, seed=seed)
        self._rows, self._starts = np.concatenate(rows), np.cumsum(counts) - counts

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Positions:
        """As `SampleOrder.batch`."""
        among = super().batch(step, rank, world)
        return among._replace(row=self._rows[self._starts[among.shard] + among.row])


class _Classifier(nn.Module):
    """A copy of a backbone, and a linear head that starts at zero: (N, 1, H, W) -> (N,) logits.

    Trained in bf16 as in pretraining, evaluated in fp32 as frozen features are; the head is fp32 always.
    """

    def __init__(self, backbone: nn.Module, size_px: int) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone).cpu().requires_grad_(True).eval()
        with torch.inference_mode():
            feature_size = self.backbone(torch.zeros(1, 1, size_px, size_px)).shape[1]
        # Without the usual initialisation, which would draw from the global random state.
        self.head = nn.Linear(feature_size, 1, device="meta").to_empty(device="cpu")
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the positive class of a batch of images."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.training):
            features = self.backbone(images)
        logits: Tensor = self.head(features.float()).squeeze(1)
        return logits


def _learner(
    model: _Classifier,
    shards: ShardSet,
    ids: Hashes,
    classes: Ints,
    preprocessing: Preprocessing,
    config: FinetuneConfig,
    steps: int,
) -> Callable[[Batch], None]:
    """Return what makes the step of a batch of training images (their ids and classes) in a training of `steps`."""
    optim = OptimConfig("adamw", config.learning_rate, weight_decay=config.weight_decay, schedule="cosine")
    optimizer = build_optimizer(optim, model)
    class_of = dict(zip(ids.tolist(), classes.tolist(), strict=True))
    balance = torch.from_numpy(compute_class_weight("balanced", classes=np.array([0, 1]), y=classes)).float()

    def learn(batch: Batch) -> None:
        if batch.valid.sum() < 2:
            return  # batch norm cannot tell one image from the mean
        targets = torch.tensor([class_of[sample] for sample in batch.rows["sample"][batch.valid].tolist()])
        images = batch.views[0][torch.from_numpy(batch.valid).to(batch.views[0].device)]
        # From the normalisation by these shards to that of the pretraining, which the backbone knows.
        images = (images * shards.pixel_std + shards.pixel_mean - preprocessing.mean) / preprocessing.std
        logits = model.train()(images)
        loss = F.binary_cross_entropy_with_logits(logits, targets.to(logits), weight=balance[targets].to(logits.device))
        if not loss.isfinite():
            raise _diverged(f"the loss is {loss.item()} in step {batch.step + 1} of {steps}", config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(optim, batch.step, steps, config.local_batch)
        optimizer.step()

    return learn


def _numbers(shards: ShardSet, ids: Hashes) -> Ints:
    """Return the positions (n,) of these samples in packed order."""
    packed = np.concatenate([shards.index(shard)["sample"] for shard in range(len(shards.shards))])
    ascending = np.argsort(packed)
    return ascending[np.searchsorted(packed, ids, sorter=ascending)]


@torch.inference_mode()
def _predict(model: _Classifier, batches: Iterable[Batch], ids: Hashes, config: FinetuneConfig) -> Floats:
    """Return the probability (n,) of the positive class of these samples, whose whole images are in `batches`."""
    model.eval()
    position_of = {sample: position for position, sample in enumerate(ids.tolist())}
    logits = np.full(len(ids), np.nan)
    for batch in batches:
        positions = [position_of[sample] for sample in batch.rows["sample"].tolist()]
        logits[positions] = model(batch.views[0]).double().cpu().numpy()
    bad = int((~np.isfinite(logits)).sum())
    if bad:
        raise _diverged(f"the output is not finite for {bad} of {len(ids)} images", config)
    probabilities: Floats = expit(logits)
    return probabilities


def _diverged(what: str, config: FinetuneConfig) -> RunFailed:
    return RunFailed(
        f"fine-tuning diverged: {what}; lower finetune.learning_rate={config.learning_rate:g}, or choose a checkpoint "
        "whose weights are finite"
    )
