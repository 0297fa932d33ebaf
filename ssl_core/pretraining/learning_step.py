"""The learning step of the loop: loss, gradient and update for one batch."""

from collections.abc import Callable

import numpy as np
import torch

from ssl_core.engines import Engine
from ssl_core.loss.ntxent import Identities, LossReport, NonFinite
from ssl_core.views.batches import Batch

LearningStep = Callable[[Engine, Batch, float], LossReport | None]


def learn(engine: Engine, batch: Batch, learning_rate: float) -> LossReport | None:
    """Make one optimization step; collective.

    Returns:
        The loss and how it is met; None, on all ranks and with nothing changed, if loss or gradient is not finite.
    """
    valid = torch.from_numpy(batch.valid)
    views = batch.views
    if not valid.all():  # masked samples take no part: neither in the loss nor in batch norm
        views = [view[valid.to(view.device)] for view in views]
    try:
        report = engine.backward(views, identities_of(batch))
    except NonFinite:
        return None
    return report if engine.update(learning_rate) else None


def identities_of(batch: Batch) -> Identities:
    """Return the identities of a batch's samples, without those of masked ones."""
    ids = (batch.instances, batch.rows["patient"], batch.rows["study"])
    return Identities(*(torch.from_numpy(values[batch.valid].astype(np.int64)) for values in ids))
