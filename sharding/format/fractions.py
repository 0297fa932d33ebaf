"""Nested fractions of a dataset by patient: 1 %, 10 % and 100 %."""

from typing import Final

import numpy as np

from infra.rng import Uint64, draw_uint64

FRACTIONS_PERCENT: Final = (1, 10, 100)


def patient_tiers(patients: Uint64, seed: int) -> Uint64:
    """Return for each of these patients the smallest of 1, 10 and 100 percent whose fraction it belongs to: (N,).

    `patients` (N,) are 64-bit identities, in any order and as often as they have images. Patients are ranked by a draw
    keyed on (seed, patient); the fraction f is the first ceil(f % of all) of them. So fractions are nested, never
    share a patient's images with their remainder, and hold at least one patient each. A patient's draw does not depend
    on the others: a dataset that grows moves only those near a border.
    """
    distinct, where = np.unique(patients, return_inverse=True)
    ranking = np.argsort(draw_uint64(seed, "patient-tier", distinct, 0)[:, 0], kind="stable")
    tiers = np.empty(len(distinct), np.uint64)
    for percent in reversed(FRACTIONS_PERCENT):
        tiers[ranking[: -(-len(distinct) * percent // 100)]] = percent
    return tiers[where]
