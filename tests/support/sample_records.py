"""Sample metadata as read from shards, without images."""

from collections.abc import Sequence

import numpy as np

from evaluation.data.samples import Samples

Label = dict[str, int | None]


def make_samples(
    patients: Sequence[str], labels: Sequence[Label], splits: Sequence[str | None] | None = None
) -> Samples:
    ids, nothing = np.arange(len(patients), dtype=np.uint64), [None] * len(patients)
    return Samples(
        ids, ids, list(patients), list(splits or nothing), list(labels), list(nothing), list(nothing), list(nothing)
    )


def cell_samples(patients: Sequence[str], sick: Sequence[bool], splits: Sequence[str | None] | None = None) -> Samples:
    return make_samples(patients, [{"PNEUMONIA": int(is_sick), "NORMAL": int(not is_sick)} for is_sick in sick], splits)
