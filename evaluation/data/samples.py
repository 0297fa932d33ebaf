"""What shards say about the samples of a labeled dataset."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Samples:
    """What the shards say of a dataset's N samples, in their order.

    ids, patient_ids: (N,) the hashes of the index, unique across datasets. splits: the official one, or None.
    labels: upstream's names -> 1 present, 0 absent, -1 uncertain, None not mentioned. views, sexes, ages (in years):
    None where the dataset does not tell.
    """

    ids: Hashes
    patient_ids: Hashes
    patients: list[str]
    splits: list[str | None]
    labels: list[dict[str, int | None]]
    views: list[str | None]
    sexes: list[str | None]
    ages: list[float | None]
