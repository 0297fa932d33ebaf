"""Fine-tuning end to end, next to the frozen probe: it scores a backbone's weights rather than its features."""

from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.images import Inputs, TaskImages, TrainingOrder, positions_of
from evaluation.fitting.finetuning.network import FinetunedNetwork, LinearHead, logits_of
from evaluation.fitting.finetuning.rates import build_adamw, set_rate
from evaluation.fitting.finetuning.targets import Loss
from infra.arrays import Float64, Int64
from infra.configuration.options import key, setting
from infra.errors import RunFailed
from infra.log import progress, say
from ssl_core.model.optimizer import OptimConfig, learning_rate_at
from ssl_core.views.batches import Batch


@dataclass(frozen=True)
class Finetuned:
    """The network of the chosen epoch, and what it says.

    Attributes:
        network: the network
        test: (Q, t) probability of each label for the test images, in the order of their rows
        validation: (Q, v) likewise for the validation images, which had no part in training or in the choice of the
            epoch
        epoch: the chosen epoch, counted from 1
        epoch_auc: mean AUC over the labels at this epoch, on the images that chose it
        trained_epochs: epochs until training ended
    """

    network: FinetunedNetwork
    test: Float64
    validation: Float64
    epoch: int
    epoch_auc: float
    trained_epochs: int


def finetune(
    backbone: nn.Module,
    images: TaskImages,
    inputs: Inputs,
    config: FinetuneConfig,
    *,
    seed: int,
    head: LinearHead | None = None,
) -> Finetuned:
    """Train a copy of the backbone with a linear head, choose the epoch on fold 0, and score fold 1 and the test part.

    Training reads only images of fold 2 and above; the network sees fold 1 and the test part only when they are scored,
    once. So thresholds from fold 1 rest on images that chose nothing else. The first of equally good epochs is chosen.
    On a CPU the result depends only on the seed and the number of threads.

    Args:
        backbone: maps images (n, 1, size, size) to features (n, D); stays unchanged
        images: the images of the task; folds 0, 1 and those above have both answers of every label
        inputs: how images become inputs
        config: options of the fine-tuning, with at least one epoch
        seed: seed of order and views
        head: where the head starts; at zero by default

    Raises:
        RunFailed: if training diverges or an image is damaged.
    """
    assert config.epochs > 0, "without epochs there is nothing to fine-tune"
    training = images.targets.of(images.training)
    network = FinetunedNetwork(backbone, training.outputs, inputs.preprocessing.size_px)
    if head is not None:
        network.start_from(head)
    network = network.to(memory_format=torch.channels_last).to(inputs.device)
    best, trained_epochs = _train(network, images, inputs, config, seed)
    network.load_state_dict(best.weights)
    test, validation = (_score(network, images, rows, inputs, config) for rows in (images.test, images.validation))
    return Finetuned(network, test, validation, best.number, best.auc, trained_epochs)


class _Epoch(NamedTuple):
    """The AUC of the network after an epoch on the images that choose the epoch, and its weights."""

    number: int
    auc: float
    weights: dict[str, Tensor]


def _train(
    network: FinetunedNetwork, images: TaskImages, inputs: Inputs, config: FinetuneConfig, seed: int
) -> tuple[_Epoch, int]:
    """Train a network; return its best epoch, and how many epochs were trained."""
    order = TrainingOrder(images, config.local_batch, seed)
    ends = [order.first_step_after_epoch(epoch) for epoch in range(config.epochs)]
    learner = _Learner(network, images, inputs, config, ends[-1])
    choosing = images.targets.of(images.choosing)
    best, epoch = _Epoch(0, -1.0, {}), 0
    with closing(inputs.training_batches(images, order, seed)) as batches:
        for batch in progress(islice(batches, ends[-1]), "fine-tuning", ends[-1], unit="batch"):
            learner.learn(batch)
            if batch.step + 1 not in ends:
                continue
            epoch += 1
            auc = choosing.mean_auc(_score(network, images, images.choosing, inputs, config))
            if auc > best.auc:
                best = _Epoch(epoch, auc, deepcopy(network.state_dict()))
            if config.patience is not None and epoch - best.number >= config.patience:
                since = f"no better AUC since epoch {best.number}, with {setting(config, 'patience')}"
                say(f"fine-tuning ends after epoch {epoch}: {since}")
                break
    return best, epoch


class _Learner:
    """Trains a network by one batch after the other, by AdamW and a cosine that ends at the last step."""

    def __init__(
        self, network: FinetunedNetwork, images: TaskImages, inputs: Inputs, config: FinetuneConfig, steps: int
    ) -> None:
        self._network, self._images, self._inputs, self._config = network, images, inputs, config
        rows = images.training[np.argsort(images.ids[images.training])]
        self._ids, self._loss, self._steps = images.ids[rows], Loss(images.targets.of(rows)), steps
        self._schedule = OptimConfig("adamw", config.learning_rate, schedule="cosine")
        self._optimizer = build_adamw(network, config)

    def learn(self, batch: Batch) -> None:
        """Make one step."""
        if batch.valid.sum() < 2:
            return  # batch norm cannot tell one image from the mean
        views = batch.views[0][torch.from_numpy(batch.valid).to(batch.views[0].device)]
        logits = self._network.train()(self._inputs.renormalized(views, self._images.shards))
        loss = self._loss(logits, np.searchsorted(self._ids, batch.rows["sample"][batch.valid]))
        if not loss.isfinite():
            raise _diverged(f"the loss is {loss.item()} in step {batch.step + 1} of {self._steps}", self._config)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        set_rate(self._optimizer, learning_rate_at(self._schedule, batch.step, self._steps, self._config.local_batch))
        self._optimizer.step()


def _score(
    network: FinetunedNetwork, images: TaskImages, rows: Int64, inputs: Inputs, config: FinetuneConfig
) -> Float64:
    """Return the probability (Q, m) of each label for the images of these rows (m,)."""
    total = -(-len(rows) // config.local_batch)
    with closing(inputs.batches(images, rows, config.local_batch)) as batches:
        ids, logits = logits_of(network, progress(batches, "scoring", total, unit="batch"))
    damaged = int((~np.isfinite(logits)).any(axis=1).sum())
    if damaged:
        raise _diverged(f"the output is not finite for {damaged} of {len(rows)} images", config)
    return images.targets.probabilities(logits[positions_of(images.ids[rows], ids)])


def _diverged(reason: str, config: FinetuneConfig) -> RunFailed:
    return RunFailed(
        f"fine-tuning diverged: {reason}; lower {key(config, 'learning_rate')}={config.learning_rate:g}, or choose a "
        "checkpoint whose weights are finite"
    )
