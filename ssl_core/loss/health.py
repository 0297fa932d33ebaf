"""Label-free measures of a representation's health, from the projections that the loss has gathered anyway."""

import math
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

UNIFORMITY_ROWS: Final = 1024
_BLOCK_ROWS: Final = 1024


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


def first_views_uniformity(z: Tensor, firsts: Tensor) -> Tensor:
    """Return the uniformity of the samples, each represented by its first view.

    Of more than 1,024 samples, 1,024 evenly spaced ones represent all: numbers k B / 1024, rounded down.

    Args:
        z: (N, d) unit rows
        firsts: (B,) positions of the first views
    """
    count = min(len(firsts), UNIFORMITY_ROWS)
    return uniformity(z[firsts[torch.arange(count, device=z.device) * len(firsts) // count]])


def deviation(z: Tensor) -> Tensor:
    """Return the mean over dimensions of the standard deviation of unit rows z (N, d), times sqrt(d).

    0 if all rows are equal, 1 if they are spread evenly over all dimensions (Chen and He 2021, section 4.1).
    """
    return z.std(dim=0, correction=0).double().mean() * math.sqrt(z.shape[1])
