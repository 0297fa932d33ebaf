"""Label-free measures of a representation's health, and what the loss would be without anything learned."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ssl_core.loss.config import LossConfig

_BLOCK_ROWS: Final = 1024


class Geometry(NamedTuple):
    """How vectors of two views of the same samples lie in space; all but `rankme` look at directions alone.

    Attributes:
        alignment: mean squared distance of the two views of a sample; 0 is best
        uniformity: see `uniformity`
        deviation: see `deviation`
        rankme: see `rankme`
    """

    alignment: Tensor
    uniformity: Tensor
    deviation: Tensor
    rankme: Tensor


def geometry(views: Tensor) -> Geometry:
    """Measure the vectors (2, n, d) of two views of n samples, at least two, from the backbone or the head."""
    unit = F.normalize(views, dim=2)
    first, second = unit
    return Geometry(
        alignment=(first - second).double().square().sum(1).mean(),
        uniformity=uniformity(first),
        deviation=deviation(unit.flatten(0, 1)),
        rankme=rankme(views[0]),
    )


def uniformity(z: Tensor, squared_norms: Tensor | None = None) -> Tensor:
    """Return log mean exp(-2 |z_i - z_j|^2) over pairs of rows: 0 collapsed, -4 spread out.

    Wang and Isola 2020, section 4.1, with t = 2.

    Args:
        z: (n, d), at least two rows
        squared_norms: (n,) of the rows; 1 by default

    Returns:
        A scalar in float64.
    """
    count = len(z)
    norms = torch.ones(count, dtype=z.dtype, device=z.device) if squared_norms is None else squared_norms
    sums = []
    for start, stop in pairwise([*range(0, count, _BLOCK_ROWS), count]):
        # -2 |z_i - z_j|^2 = 4 z_i . z_j - 2 (|z_i|^2 + |z_j|^2)
        exponents = (4 * (z[start:stop] @ z.T) - 2 * (norms[start:stop, None] + norms)).clamp(max=0)
        exponents.diagonal(start).fill_(float("-inf"))  # a row and itself are no pair
        sums.append(exponents.double().flatten().logsumexp(0))
    return torch.stack(sums).logsumexp(0) - math.log(count * (count - 1))


def deviation(z: Tensor) -> Tensor:
    """Return the mean over dimensions of the standard deviation of unit rows z (N, d), times sqrt(d).

    0 if all rows are equal, 1 if they are spread evenly over all dimensions (Chen and He 2021, section 4.1).
    """
    return z.std(dim=0, correction=0).double().mean() * math.sqrt(z.shape[1])


def rankme(rows: Tensor) -> Tensor:
    """Return the effective rank of rows (n, d), from 1 to min(n, d): the exponential of the singular values' entropy.

    Garrido et al. 2023, "RankMe", eq. 1, without its term against log 0. The singular values are the roots of the
    eigenvalues of the smaller Gram matrix, which a GPU finds far sooner; in float64 they keep eight digits.
    """
    rows = rows.double()
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum().clamp(min=1e-300)).sum().exp()  # 1 if all rows are zero


def chance_loss(loss: LossConfig, identities: Sequence[Tensor], small_views: int) -> float:
    """Return the loss of projections that tell nothing apart: the log of how many rows each row is compared with.

    Without related samples and small views it is ln(2B - 1). It counts the rows that the loss keeps
    (`ssl_core.loss.pair_sums`), so it is also right where samples are masked, related or shown by small views.

    Args:
        loss: the settings of the loss
        identities: of the global batch's B samples: instance, patient and study, (B,) each
        small_views: small views of a sample
    """
    instance, _, study = identities
    in_group = 2 * _occurrences(related_by(loss, identities))  # rows, the row itself included
    positives = 2 * _occurrences(study if loss.same_patient == "positive" else torch.arange(len(instance)))
    strangers = 2 * len(instance) - in_group
    large, small = (strangers, strangers) if loss.decoupled else (strangers + positives - 1, strangers + positives)
    # A row of the decoupled loss without any stranger has loss 0, and so has the log of 1.
    of_large, of_small = (kept.clamp(min=1).double().log().mean().item() for kept in (large, small))
    return (2 * of_large + small_views * of_small) / (2 + small_views)


def related_by(loss: LossConfig, identities: Sequence[Tensor]) -> Tensor:
    """Return the identity (B,) that two samples share if their views are no negatives of each other."""
    instance, patient, _ = identities
    return instance if loss.same_patient == "negative" else patient


def _occurrences(values: Tensor) -> Tensor:
    """Return how often each value occurs, (B,)."""
    _, which, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return counts[which]
