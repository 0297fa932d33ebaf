"""The learning step of the loop: loss, gradient and update for one batch."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from ssl_core.engines import Engine
from ssl_core.engines.step_update import StepUpdate
from ssl_core.loss.agreement import GlobalBatch, agree
from ssl_core.loss.config import LossConfig
from ssl_core.loss.ntxent import Identities, LossReport
from ssl_core.views.batches import Batch


class Learned(NamedTuple):
    """A step that a GPU may not have finished yet. update: false if loss or gradient is not finite."""

    report: LossReport
    update: StepUpdate


LearningStep = Callable[[Engine, Batch, GlobalBatch, float], Learned]


def learn(engine: Engine, batch: Batch, agreed: GlobalBatch, learning_rate: float) -> Learned:
    """Make one optimization step; collective. Nothing changes, on all ranks, if loss or gradient is not finite.

    Args:
        engine: the engine
        batch: this rank's part of the step
        agreed: what the ranks have agreed on
        learning_rate: of this step
    """
    # Masked samples take no part: neither in the loss nor in batch norm.
    report = engine.backward(batch.views, agreed, torch.from_numpy(batch.valid))
    return Learned(report, engine.update(learning_rate))


def identities_of(batch: Batch) -> Identities:
    """Return the identities of a batch's samples, without those of masked ones."""
    ids = (batch.instances, batch.rows["patient"], batch.rows["study"])
    return Identities(*(torch.from_numpy(values[batch.valid].astype(np.int64)) for values in ids))


def agree_on(batch: Batch, loss: LossConfig, *, stop: bool = False) -> GlobalBatch:
    """Tell all ranks about the samples of this rank that are not masked, as `agree` does. Collective.

    Args:
        batch: this rank's part of the step
        loss: settings of the loss
        stop: whether this rank was asked to stop
    """
    return agree(int(batch.valid.sum()), loss, identities_of(batch), stop=stop)
