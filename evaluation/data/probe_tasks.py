"""Tasks to probe: each labeled dataset as each preset divides it, with a record of its parts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.data.cohort import Cohort, build_cohort
from evaluation.data.features import load_stored, store
from evaluation.data.labeled_sets import LabeledSet, is_simulated
from evaluation.data.overlap import Seen
from evaluation.results.notes import describe_overlap
from evaluation.results.presets import PRESETS, Balance, Preset, PresetName, Split, Task, Uncertain, tasks_of
from evaluation.results.results import Dataset, PartSize, SeenPart, TaskKey
from infra.arrays import Bool, Int64
from infra.errors import UserError
from infra.log import say
from infra.urls import shown
from sharding.auditing.duplicates import near_duplicate_groups
from sharding.format.copies import read_copies
from sharding.format.writer import sample_identity


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """The classification task of a labeled dataset as one preset divides it; compared by identity.

    Attributes:
        labeled_set: the dataset
        cohort: its images that belong to the task, and their parts
        preset: the protocol
        record: the task's record in the results
        groups: (N,) one code for all samples of the dataset that are connected by a patient or a picture
    """

    labeled_set: LabeledSet
    cohort: Cohort
    preset: Preset
    record: Dataset
    groups: Int64

    @property
    def key(self) -> TaskKey:
        """Key of the rows that score this task."""
        return self.record.key


def open_probe_tasks(
    labeled_sets: Sequence[LabeledSet],
    presets: Sequence[PresetName],
    seen: Mapping[str, Seen],
    *,
    folder: Path,
    exclude: Path | None,
    seed: int,
    uncertain: Uncertain,
    balance: Balance | None,
    split: Split,
    folds: int | None,
    repeats: int,
    allow_overlap: bool,
) -> list[ProbeTask]:
    """Divide every dataset by every preset.

    Args:
        labeled_sets: the datasets
        presets: names of the presets
        seen: what pretraining saw of each dataset, by its label; none if unknown
        folder: folder of the stored groups of near-identical images
        exclude: the `audit.json` whose copies are left out
        seed: determines parts and folds
        uncertain: meaning of an uncertain positive label
        balance: replaces the balances of the tasks
        split: official, or ignore: divide a dataset with an official split a second time, as if it had none
        folds: replaces the folds of the presets
        repeats: repetitions of the cross-validation
        allow_overlap: accept test parts that pretraining saw

    Raises:
        UserError: if a dataset cannot be divided, or if pretraining saw its test part and `allow_overlap` is false.
    """
    opened = []
    for labeled_set in labeled_sets:
        left_out = None if exclude is None else _copies(labeled_set, exclude)
        groups = _groups(labeled_set, folder)
        for variant in _variants(labeled_set, balance, split):
            for name in presets:
                preset = PRESETS[name]
                cohort = build_cohort(
                    labeled_set.manifest.dataset,
                    variant.task,
                    labeled_set.samples,
                    preset,
                    seed=seed,
                    split=variant.split,
                    uncertain=uncertain,
                    groups=groups if preset.groups_duplicates else None,
                    left_out=left_out,
                    folds=folds,
                    repeats=repeats,
                )
                key = TaskKey(variant.label, name)
                record = _record(labeled_set, cohort, preset, key, seen.get(labeled_set.label))
                _require_unseen(record, allow_overlap)
                opened.append(ProbeTask(labeled_set, cohort, preset, record, groups))
    return opened


class _Variant(NamedTuple):
    """A task of a labeled set and the way to divide it; the label names both in the tables."""

    label: str
    task: Task
    split: Split


def _variants(labeled_set: LabeledSet, balance: Balance | None, split: Split) -> Iterator[_Variant]:
    """Yield the tasks of a labeled set, first by its official split, then, if asked for, without it."""
    tasks = tasks_of(labeled_set.manifest.dataset)
    if balance is not None:
        tasks = tuple(dict.fromkeys(replace(task, balance=balance) for task in tasks))
    labels = {task: labeled_set.label + _difference(task, tasks[0]) for task in tasks}
    for task, label in labels.items():
        yield _Variant(label, task, "official")
    if split == "ignore" and "test" not in labeled_set.samples.splits:
        say(f"{labeled_set.label}: has no official split to ignore")
    elif split == "ignore":
        for task, label in labels.items():
            yield _Variant(f"{label}, split ignored", task, "ignore")


def _difference(task: Task, first: Task) -> str:
    """Return what distinguishes a task of a dataset from its first one; empty for the first itself."""
    against = "" if task.negative == first.negative else f", against {task.negative_name}"
    return against + ("" if task.balance == first.balance else f", balanced by {task.balance}")


def _copies(labeled_set: LabeledSet, exclude: Path) -> Bool:
    """Return (N,) whether an image is a copy that an audit lists."""
    name = labeled_set.manifest.name
    copies = [sample_identity(name, key) for key in read_copies(exclude, name)]
    found: Bool = np.isin(labeled_set.samples.ids, np.array(copies, np.uint64))
    return found


def _groups(labeled_set: LabeledSet, folder: Path) -> Int64:
    """Return (N,) one code for all samples connected by a shared patient or by near-identical images."""
    ids = labeled_set.samples.ids
    path = folder / f"{labeled_set.manifest.identity[:32]}-near-duplicates-2.safetensors"
    duplicates = load_stored(path, ids, np.int64)
    if duplicates is None:
        packed_ids, duplicates = near_duplicate_groups([labeled_set.location], fetch=labeled_set.shards.fetch)
        assert np.array_equal(packed_ids, ids), "both are in packed order"
        store(path, duplicates, ids)
    patients = np.unique(labeled_set.samples.patient_ids, return_inverse=True)[1]
    # A graph whose nodes are the samples, then the patients, then the groups of near-identical images.
    count = len(ids)
    samples = np.tile(np.arange(count), 2)
    neighbors = np.concatenate([count + patients, 2 * count + np.unique(duplicates, return_inverse=True)[1]])
    edges = coo_array((np.ones(len(samples), np.int8), (samples, neighbors)), shape=(3 * count, 3 * count))
    components: Int64 = connected_components(edges, directed=False)[1][:count].astype(np.int64)
    return components


def _record(labeled_set: LabeledSet, cohort: Cohort, preset: Preset, key: TaskKey, seen: Seen | None) -> Dataset:
    in_test = cohort.in_test.any(axis=0)
    tested = cohort.rows[in_test]
    patients = labeled_set.samples.patient_ids[tested]
    return Dataset(
        label=key.dataset,
        preset=key.preset,
        name=labeled_set.manifest.dataset,
        folder=shown(labeled_set.location),
        identity=labeled_set.manifest.identity,
        simulated=is_simulated(labeled_set.manifest),
        positive=cohort.task.positive,
        negative=cohort.task.negative_name,
        balance=cohort.task.balance,
        split=cohort.split,
        rounds=len(cohort.folds),
        development=_part_size(labeled_set, cohort, preset, cohort.in_development),
        test=_part_size(labeled_set, cohort, preset, cohort.in_test),
        excluded=cohort.excluded,
        pretrained_images=int(seen.images[tested].sum()) if seen else None,
        pretrained_patients=len(np.unique(patients[seen.images[tested] | seen.patients[tested]])) if seen else None,
        pretrained_parts=_seen_parts(seen, tested, cohort.classes[in_test]) if seen else [],
        pictures_compared=seen.pictures_compared if seen else None,
        not_square=int(np.sum(np.diff(labeled_set.samples.sizes[cohort.rows]) != 0)),
    )


def _seen_parts(seen: Seen, tested: Int64, classes: Int64) -> list[SeenPart]:
    """Count the tested rows (n,) of the two classes (n,) by the place in which pretraining saw them."""
    images = Counter((seen.places[row], code) for row, code in zip(tested.tolist(), classes.tolist(), strict=True))
    places = sorted({place for place, _ in images if place})
    return [SeenPart(place, positive=images[place, 1], negative=images[place, 0]) for place in places]


def _part_size(labeled_set: LabeledSet, cohort: Cohort, preset: Preset, inside: Bool) -> PartSize:
    """Count what a part (rounds, n) holds in any round: images, patients, and the groups that replace patients."""
    ever = inside.any(axis=0)
    patients = len(np.unique(labeled_set.samples.patient_ids[cohort.rows[ever]]))
    groups = len(np.unique(cohort.patients[ever])) if preset.groups_duplicates else None
    positive, images = int(cohort.classes[ever].sum()), int(ever.sum())
    return PartSize(images, patients, positive, images - positive, groups)


def _require_unseen(record: Dataset, allow_overlap: bool) -> None:
    if record.overlaps and not allow_overlap:
        raise UserError(
            f"dataset {record.label!r}: {describe_overlap(record)}, which flatters the checkpoints; leave these images "
            "out (sternum audit PRETRAINING TESTED writes the audit.json for --exclude), pretrain on "
            "--data.splits=[train], or pass --allow_overlap=true to have the rows marked"
        )
