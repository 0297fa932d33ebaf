"""Sample metadata as read from shards, without images."""

from collections.abc import Sequence

import numpy as np

from evaluation.data.samples import Samples

Label = dict[str, int | None]


def make_samples(
    patients: Sequence[str], labels: Sequence[Label], splits: Sequence[str | None] | None = None
) -> Samples:
    count = len(patients)
    ids, nothing = np.arange(count, dtype=np.uint64), [None] * count
    return Samples(
        ids=ids,
        keys=[f"image-{number}" for number in ids.tolist()],
        patient_ids=ids,
        patients=list(patients),
        splits=list(splits or nothing),
        labels=list(labels),
        views=list(nothing),
        sexes=list(nothing),
        ages=list(nothing),
        sizes=np.full((count, 2), 64),
        source_sizes=np.zeros((count, 2), np.int64),
        file_bytes=np.full(count, 1000),
    )


def cell_samples(patients: Sequence[str], sick: Sequence[bool], splits: Sequence[str | None] | None = None) -> Samples:
    return make_samples(patients, [{"PNEUMONIA": int(is_sick), "NORMAL": int(not is_sick)} for is_sick in sick], splits)
