"""Label-free signs of how a representation fares, from the projections that the loss has gathered anyway."""

import math
from typing import Final

import torch
from torch import Tensor

UNIFORMITY_ROWS: Final = 1024


def uniformity(z: Tensor, firsts: Tensor) -> Tensor:
    """Return log mean exp(-2 |z_i - z_j|^2) over pairs of samples, each by its first view: 0 collapsed, -4 spread out.

    z: (N, d) unit rows; firsts: (B,) the places of first views. Of more than 1,024 samples, as many evenly spaced ones
    stand for all: numbers k B / 1024, rounded down. Wang and Isola 2020, section 4.1, with t = 2.
    """
    count = min(len(firsts), UNIFORMITY_ROWS)
    z = z[firsts[torch.arange(count, device=z.device) * len(firsts) // count]]
    # -2 |z_i - z_j|^2 = 4 z_i . z_j - 4 for unit rows
    exponents = (4 * (z @ z.T) - 4).clamp(max=0).fill_diagonal_(float("-inf"))
    return exponents.double().flatten().logsumexp(0) - math.log(count * (count - 1))


def deviation(z: Tensor) -> Tensor:
    """Return the mean over dimensions of the standard deviation of unit rows z (N, d), times sqrt(d).

    0 when all rows are equal, 1 when they are spread over all dimensions alike (Chen and He 2021, section 4.1).
    """
    return z.std(dim=0, correction=0).double().mean() * math.sqrt(z.shape[1])
