"""The health of the representation in a step whose metrics are written: a look at the step's own tensors.

Nothing is computed in other steps. Features and projections are copied as they pass the head, so neither the gradient,
the weights nor the order of samples changes by a bit. All values are about the global batch, or the same evenly spaced
samples of it, so they do not depend on the number of ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infra.monitoring.metrics import Histogram
from infra.ranks.processes import Ranks
from ssl_core.loss.gather import gather_equal, gather_rows
from ssl_core.loss.health import chance_loss, geometry, related_by
from ssl_core.loss.ntxent import Identities, LossConfig

MOST_SAMPLES: Final = 512  # of the global batch, evenly spaced, that stand for all
_BINS: Final = 64


class Health(NamedTuple):
    """The health of one step.

    Attributes:
        values: numbers by tag
        histograms: distributions by tag
    """

    values: dict[str, float]
    histograms: dict[str, Histogram]


class HealthWatch:
    """Looks at what passes the projection head in the steps that it is asked to watch."""

    def __init__(self, head: nn.Module, loss: LossConfig, small_views: int, ranks: Ranks) -> None:
        self._head, self._loss, self._small_views, self._ranks = head, loss, small_views, ranks
        self._features: list[Tensor] = []  # (2m, features) of each micro-batch: first views, then second ones
        self._projections: list[Tensor] = []  # (2m, d)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep features and projections of the engine's next step, which is made within the block."""
        self._features, self._projections = [], []
        sizes, calls, done = 1 + bool(self._small_views), 0, False

        def keep(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            # The engine projects one micro-batch after the other, small views after large ones, and only the last one
            # with gradients (`gradient_cache`). What it projects after that repeats earlier micro-batches.
            nonlocal calls, done
            if calls % sizes == 0 and not done:
                self._features.append(inputs[0].detach().float().clone())
                self._projections.append(output.detach().float().clone())
            calls += 1
            done = done or (torch.is_grad_enabled() and calls % sizes == 0)

        handle = self._head.register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()

    def measure(self, identities: Identities, valid: Tensor) -> Health | None:
        """Return the health of the step that was watched, on the first rank; None on the others. Collective.

        Args:
            identities: of this rank's samples that were not masked
            valid: (n,) bool on the CPU, which samples these are
        """
        places = valid.nonzero()[:, 0]
        features, projections = (
            _in_order(parts)[:, places.to(parts[0].device)] for parts in (self._features, self._projections)
        )
        self._features, self._projections = [], []
        counts = gather_equal(torch.tensor(features.shape[1])).tolist()
        chosen = _evenly_spaced(sum(counts))
        starts = [sum(counts[:rank]) for rank in range(len(counts) + 1)]
        within = [chosen[(start <= chosen) & (chosen < end)] - start for start, end in pairwise(starts)]
        mine, shares = within[self._ranks.rank].to(features.device), [len(samples) for samples in within]
        features, projections = (
            gather_rows(views.transpose(0, 1)[mine], shares).transpose(0, 1) for views in (features, projections)
        )
        ids = gather_rows(torch.stack([*identities], dim=1), counts).unbind(1)  # (B,) each
        if not self._ranks.is_first:
            return None
        related = related_by(self._loss, ids)[chosen].to(features.device)
        first, second = F.normalize(projections, dim=2)
        similarities = first @ second.T
        positive, negative = similarities.diagonal(), similarities[related[:, None] != related]
        values = {f"health/backbone_{name}": value for name, value in geometry(features)._asdict().items()}
        values |= {f"health/projection_{name}": value for name, value in geometry(projections)._asdict().items()}
        values |= {"health/positive_similarity": positive.mean(), "health/negative_similarity": negative.mean()}
        numbers = torch.stack([value.double() for value in values.values()]).tolist()
        return Health(
            {"loss/chance": chance_loss(self._loss, ids, self._small_views), **dict(zip(values, numbers, strict=True))},
            {"similarity/positives": _histogram(positive), "similarity/negatives": _histogram(negative)},
        )


def _in_order(parts: list[Tensor]) -> Tensor:
    """Merge micro-batches (2m, d), of which part p has the samples p, p + P, ..., to (2, n, d)."""
    views = torch.empty(2, sum(len(part) for part in parts) // 2, parts[0].shape[1], device=parts[0].device)
    for number, part in enumerate(parts):
        into = views[:, number :: len(parts)]
        into.copy_(part.reshape(into.shape))
    return views


def _evenly_spaced(samples: int) -> Tensor:
    """Return the numbers of at most `MOST_SAMPLES` samples: k samples / 512, rounded down."""
    count = min(samples, MOST_SAMPLES)
    return torch.arange(count) * samples // count


def _histogram(similarities: Tensor) -> Histogram:
    """Count cosine similarities in bins of 1/32."""
    counts = torch.histc(similarities.clamp(-1, 1), _BINS, min=-1, max=1)
    return Histogram(torch.linspace(-1, 1, _BINS + 1).tolist(), counts.tolist())
