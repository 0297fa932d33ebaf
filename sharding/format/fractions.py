"""Nested fractions of a dataset by patient: 1 %, 10 % and 100 %."""

from typing import Final

import numpy as np

from infra.arrays import UInt64
from infra.rng import draw_uint64

FRACTIONS_PERCENT: Final = (1, 10, 100)


def patient_tiers(patients: UInt64, seed: int) -> UInt64:
    """Return the tier of each patient: the smallest fraction, of 1, 10 and 100 percent, that the patient belongs to.

    Patients are ranked by a draw keyed on (seed, patient), and the fraction f is the first ceil(f % of all) of them.
    So fractions are nested, never split a patient's images, and hold at least one patient each. A patient's draw does
    not depend on the others, so a dataset that grows moves only the patients near a border.

    Args:
        patients: (N,) 64-bit identities in any order, repeated for every image of the patient
        seed: the seed of the draw

    Returns:
        (N,) percentages.
    """
    distinct, inverse = np.unique(patients, return_inverse=True)
    ranking = np.argsort(draw_uint64(seed, "patient-tier", distinct, 0)[:, 0], kind="stable")
    tiers = np.empty(len(distinct), np.uint64)
    for percent in reversed(FRACTIONS_PERCENT):
        tiers[ranking[: -(-len(distinct) * percent // 100)]] = percent
    return tiers[inverse]
