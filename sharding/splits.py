"""Nested fractions of a dataset by patient: 1 %, 10 % and 100 %."""

from collections.abc import Iterable
from typing import Final

import numpy as np

from infra.rng import draw_words, stable_hash

TIERS_PERCENT: Final = (1, 10, 100)


def patient_tiers(patients: Iterable[str], seed: int) -> dict[str, int]:
    """Return for each patient the smallest of 1, 10 and 100 percent whose fraction it belongs to.

    Patients are ranked by a draw keyed on (seed, patient); the fraction f is the first ceil(f % of N) of them. So
    fractions are nested, never share a patient's images with their remainder, and hold at least one patient each.
    A patient's draw does not depend on the others: a dataset that grows moves only those near a border.
    """
    names = sorted(set(patients))
    words = draw_words(seed, "patient-tier", np.array([stable_hash(name) for name in names], np.uint64), 0, 2)
    ranking = np.lexsort((words[:, 1], words[:, 0]))
    tiers = np.empty(len(names), np.int64)
    for percent in reversed(TIERS_PERCENT):
        tiers[ranking[: -(-len(names) * percent // 100)]] = percent
    return dict(zip(names, tiers.tolist(), strict=True))
