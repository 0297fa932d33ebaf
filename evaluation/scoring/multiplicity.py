"""Adjustment of p-values for the number of verdicts that are given together."""

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the adjusted p-value of each test of one family, in the order given.

    Calling differences real where the adjusted p-value is at most 0.05 calls any difference real by chance in at most
    5 % of such families, however the tests depend on each other. Holm 1979, "A simple sequentially rejective multiple
    test procedure": the k-th smallest of m p-values is multiplied by m - k + 1, and none falls below a smaller one's.
    """
    values = np.asarray(p_values, np.float64)
    assert ((values >= 0) & (values <= 1)).all(), f"p-values lie between 0 and 1: {values}"
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()
