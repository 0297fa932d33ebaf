"""The difference of two recipes, computed image by image and without any code of Sternum."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Scored(Protocol):
    """Test images with their classes (0 or 1), scores and patients, (m,) each."""

    @property
    def classes(self) -> np.ndarray: ...

    @property
    def probabilities(self) -> np.ndarray: ...

    @property
    def patients(self) -> np.ndarray: ...


def by_hand(first: Sequence[Scored], second: Sequence[Scored], resamples: int) -> tuple[float, float, float]:
    """Return difference, standard error and degrees of freedom, from images drawn one patient at a time."""
    random = np.random.default_rng(0)
    runs = [*first, *second]
    images = [np.flatnonzero(first[0].patients == code) for code in np.unique(first[0].patients)]

    def aucs(rows: np.ndarray) -> list[float]:
        positive, negative = (rows[first[0].classes[rows] == code] for code in (1, 0))
        return [float((run.probabilities[positive][:, None] > run.probabilities[negative]).mean()) for run in runs]

    whole = np.array(aucs(np.arange(len(first[0].classes))))
    drawn = np.array(
        [
            aucs(np.concatenate([images[code] for code in random.integers(0, len(images), len(images))]))
            for _ in range(resamples)
        ]
    )
    covariance = np.cov(drawn.T)
    k = len(first)
    pairs = [(i, j) for i in range(len(runs)) for j in range(len(runs))]
    within_first = np.mean([covariance[i, j] for i, j in pairs if i < k and j < k and i != j])
    within_second = np.mean([covariance[i, j] for i, j in pairs if i >= k and j >= k and i != j])
    across = np.mean([covariance[i, j] for i, j in pairs if i < k <= j])
    of_patients = max(0.0, within_first + within_second - 2 * across)  # an estimate of a variance may be negative
    parts = [
        (of_patients, len(np.unique(first[0].patients[first[0].classes == 1])) - 1),
        (whole[:k].var(ddof=1) / k, k - 1),
        (whole[k:].var(ddof=1) / (len(runs) - k), len(runs) - k - 1),
    ]
    total = sum(part for part, _ in parts)
    freedom = total**2 / sum(part**2 / of_part for part, of_part in parts)
    return float(whole[:k].mean() - whole[k:].mean()), float(np.sqrt(total)), float(freedom)
