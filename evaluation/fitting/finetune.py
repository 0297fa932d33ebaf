"""Fine-tuning end to end, next to the frozen probe: it scores a backbone's weights rather than its features."""

import math
from collections.abc import Callable, Iterable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn

from evaluation.data.features import Preprocessing
from infra.arrays import Float64, Int64, UInt64
from infra.errors import RunFailed, require
from infra.log import progress
from infra.options import key, require_at_least, setting
from sharding.reading.order import Positions, SampleOrder
from sharding.reading.shard_set import ShardSet
from ssl_core.model.optimizer import OptimConfig, build_optimizer, learning_rate_at
from ssl_core.views.batches import Batch, image_batches, training_batches
from ssl_core.views.spec import ViewSpec

_LEAST_CROP_AREA: Final = 0.5  # the label describes the whole image, so a crop must not miss the lesion
_SHUFFLE_WINDOW: Final = 16384


@dataclass(frozen=True)
class FinetuneConfig:
    """Options for fine-tuning a backbone with labels.

    Args:
        epochs: passes over the development images without folds 0 and 1, which choose the epoch and the threshold; 0
            for no fine-tuning
        learning_rate: AdamW's learning rate at the first step; it falls to zero along a cosine
        weight_decay: AdamW's weight decay; biases and norms have none
        local_batch: images per step, at least 2
    """

    epochs: int = 0
    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    local_batch: int = 64

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        require_at_least(self, "epochs", 0, "try 10")
        require(
            0 < self.learning_rate < math.inf,
            f"{setting(self, 'learning_rate')} must be positive and finite; try 0.0001",
        )
        require(
            0 <= self.weight_decay < math.inf,
            f"{setting(self, 'weight_decay')} must be finite and not negative; try 0.05",
        )
        require_at_least(self, "local_batch", 2, "batch norm compares images; try 64")


@dataclass(frozen=True)
class FinetunedNetwork:
    """The predictions of the network of the chosen epoch.

    Attributes:
        probabilities: (t,) of the positive class for the test images, in the order of the rows with fold -1
        validation: (v,) of the positive class for the validation images, which had no part in training or in the choice
            of the epoch
        validation_rows: (v,) which of the n rows the validation images are
        epoch: the chosen epoch, counted from 1
        epoch_auc: AUC at this epoch on the images that chose it
    """

    probabilities: Float64
    validation: Float64
    validation_rows: Int64
    epoch: int
    epoch_auc: float


def finetune(
    backbone: nn.Module,
    shards: ShardSet,
    *,
    ids: UInt64,
    classes: Int64,
    fold: Int64,
    spec: ViewSpec,
    preprocessing: Preprocessing,
    config: FinetuneConfig,
    view_executor: str,
    device: torch.device,
    seed: int,
) -> FinetunedNetwork:
    """Train a copy of the backbone with a linear head, choose the epoch on fold 0, and score fold 1 and the test part.

    Training reads only images of fold 2 and above; the network sees fold 1 and the test part only when they are scored,
    once. So a threshold from fold 1 rests on images that chose nothing else. The first of equally good epochs is
    chosen. On a CPU the result depends only on the seed and the number of threads.

    Args:
        backbone: maps images (n, 1, size, size) to features (n, D); stays unchanged
        shards: the dataset
        ids: (n,) the samples of the task
        classes: (n,) 1 positive, 0 negative
        fold: (n,) from 0 to at least 2 in the development part, -1 in the test part, less where an image is not used
        spec: views of the pretraining; training uses them with larger crops
        preprocessing: input of the backbone, whose normalization the training views get too
        config: options of the fine-tuning
        view_executor: image decoder: auto, dali or torchvision
        device: device on which the network is trained
        seed: seed of order and views; the head starts at zero

    Returns:
        The predictions of the best epoch's network.

    Raises:
        RunFailed: if training diverges or an image is damaged.
    """
    parts = (fold > 1, fold == 0, fold == 1, fold == -1)
    training, choosing, validation, test = (np.flatnonzero(part) for part in parts)
    assert config.epochs > 0, "without epochs there is nothing to fine-tune"
    assert all(set(classes[part]) == {0, 1} for part in (training, choosing, validation)), "folds have both classes"
    order = _PartOrder(shards, ids[training], min(config.local_batch, len(training)), seed)
    ends = [order.first_step_after_epoch(epoch) for epoch in range(config.epochs)]
    model = _Classifier(backbone, spec.size_px).to(memory_format=torch.channels_last).to(device)
    learn = _learner(model, shards, ids[training], classes[training], preprocessing, config, steps=ends[-1])
    views = replace(spec, crop_area=(max(spec.crop_area[0], _LEAST_CROP_AREA), 1.0))

    numbers = _packed_numbers(shards, ids)

    def predict(rows: Int64) -> Float64:
        batches = image_batches(
            shards,
            preprocessing.views,
            numbers=np.sort(numbers[rows]),
            local_batch=config.local_batch,
            mean=preprocessing.mean,
            std=preprocessing.std,
            view_executor=view_executor,
            device=device,
        )
        total = -(-len(rows) // config.local_batch)
        with closing(batches):
            return _predict(model, progress(batches, "scoring", total, unit="batch"), ids[rows], config)

    best = _Epoch(0, -1.0, {})
    with closing(
        training_batches(shards, order, views, seed=seed, view_executor=view_executor, device=device)
    ) as batches:
        for batch in progress(islice(batches, ends[-1]), "fine-tuning", ends[-1], unit="batch"):
            learn(batch)
            if batch.step + 1 in ends:
                auc = float(roc_auc_score(classes[choosing], predict(choosing)))
                if auc > best.auc:
                    best = _Epoch(ends.index(batch.step + 1) + 1, auc, deepcopy(model.state_dict()))
    assert best.number, "the last step ends an epoch"
    model.load_state_dict(best.weights)
    return FinetunedNetwork(predict(test), predict(validation), validation, best.number, best.auc)


class _Epoch(NamedTuple):
    """The AUC of the network after an epoch on the images that choose the epoch, and its weights."""

    number: int
    auc: float
    weights: dict[str, Tensor]


class _PartOrder(SampleOrder):
    """The order of the chosen samples alone, each once per epoch, in full batches.

    A task may concern one image in forty; dropping the others from batches of all images would leave one or two.
    """

    def __init__(self, shards: ShardSet, chosen: UInt64, global_batch: int, seed: int) -> None:
        rows = [np.flatnonzero(np.isin(shards.index(shard)["sample"], chosen)) for shard in range(len(shards.shards))]
        counts = np.array([len(of_shard) for of_shard in rows])
        assert counts.sum() == len(chosen), "every image of the task lies in the shards, once"
        super().__init__(counts, lanes=1, global_batch=global_batch, window=_SHUFFLE_WINDOW, seed=seed)
        self._rows, self._starts = np.concatenate(rows), np.cumsum(counts) - counts

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Positions:
        """Return the positions of a step, as shards and their rows."""
        chosen = super().batch(step, rank, world)  # positions among the chosen samples
        return chosen._replace(row=self._rows[self._starts[chosen.shard] + chosen.row])


class _Classifier(nn.Module):
    """A copy of a backbone, and a linear head that starts at zero: (N, 1, H, W) -> (N,) logits.

    Training uses bf16 as pretraining does, evaluation fp32 as frozen features do; the head is always fp32.
    """

    def __init__(self, backbone: nn.Module, size_px: int) -> None:
        super().__init__()
        self.backbone = deepcopy(backbone).cpu().requires_grad_(True).eval()
        with torch.inference_mode():
            feature_size = self.backbone(torch.zeros(1, 1, size_px, size_px)).shape[1]
        # Without the usual initialization, which would draw from the global random state.
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
    ids: UInt64,
    classes: Int64,
    preprocessing: Preprocessing,
    config: FinetuneConfig,
    steps: int,
) -> Callable[[Batch], None]:
    """Return the function that learns from one batch of the training images with these ids and classes."""
    optim = OptimConfig("adamw", config.learning_rate, weight_decay=config.weight_decay, schedule="cosine")
    optimizer = build_optimizer(optim, model)
    class_of = dict(zip(ids.tolist(), classes.tolist(), strict=True))
    balance = torch.from_numpy(compute_class_weight("balanced", classes=np.array([0, 1]), y=classes)).float()

    def learn(batch: Batch) -> None:
        if batch.valid.sum() < 2:
            return  # batch norm cannot tell one image from the mean
        targets = torch.tensor([class_of[sample] for sample in batch.rows["sample"][batch.valid].tolist()])
        images = batch.views[0][torch.from_numpy(batch.valid).to(batch.views[0].device)]
        # From the normalization of these shards to that of the pretraining, which the backbone knows.
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


def _packed_numbers(shards: ShardSet, ids: UInt64) -> Int64:
    """Return the positions (n,) of the samples with these ids in packed order."""
    packed = np.concatenate([shards.index(shard)["sample"] for shard in range(len(shards.shards))])
    ascending = np.argsort(packed)
    return ascending[np.searchsorted(packed, ids, sorter=ascending)]


@torch.inference_mode()
def _predict(model: _Classifier, batches: Iterable[Batch], ids: UInt64, config: FinetuneConfig) -> Float64:
    """Return the probabilities (n,) of the positive class for the samples with these ids, which `batches` hold.

    The logit of an image is the mean over its views.
    """
    model.eval()
    position_of = {sample: position for position, sample in enumerate(ids.tolist())}
    logits = np.full(len(ids), np.nan)
    for batch in batches:
        positions = [position_of[sample] for sample in batch.rows["sample"].tolist()]
        logits[positions] = torch.stack([model(view).double() for view in batch.views]).mean(dim=0).cpu().numpy()
    damaged = int((~np.isfinite(logits)).sum())
    if damaged:
        raise _diverged(f"the output is not finite for {damaged} of {len(ids)} images", config)
    probabilities: Float64 = expit(logits)
    return probabilities


def _diverged(reason: str, config: FinetuneConfig) -> RunFailed:
    return RunFailed(
        f"fine-tuning diverged: {reason}; lower {key(config, 'learning_rate')}={config.learning_rate:g}, or choose a "
        "checkpoint whose weights are finite"
    )
