"""Tasks to probe: each labeled dataset as each preset divides it, with a record of its parts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.data.cohort import Cohort, build_cohorts
from evaluation.data.features import load_stored, store
from evaluation.data.labeled_sets import LabeledSet, is_simulated
from evaluation.data.overlap import Seen
from evaluation.results.datasets import Dataset, PartSize, SeenPart, TaskKey
from evaluation.results.notes import describe_overlap
from evaluation.results.presets import PRESETS, Balance, Preset, PresetName, Split, Uncertain
from evaluation.results.tasks import Task
from infra.arrays import Bool, Int64
from infra.errors import UserError, require
from infra.log import say
from infra.urls import shown
from sharding.auditing.duplicates import near_duplicate_groups
from sharding.format.copies import read_copies
from sharding.format.writer import sample_identity


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """A question of a labeled dataset's task as one preset divides it; compared by identity.

    Attributes:
        labeled_set: the dataset
        cohort: its images that answer the question, and their parts
        preset: the protocol
        record: the question's record in the results
        groups: (N,) one code for all samples of the dataset that are connected by a patient or a picture
    """

    labeled_set: LabeledSet
    cohort: Cohort
    preset: Preset
    record: Dataset
    groups: Int64

    @property
    def key(self) -> TaskKey:
        """Key of the rows that score this question."""
        return self.record.key


@dataclass(frozen=True, eq=False)
class DividedTask:
    """A labeled dataset's task as one preset divides it; compared by identity.

    Attributes:
        key: label of the task in the tables, and the name of the preset
        task: the task
        questions: its questions
        left_out: positive label of each question that cannot be probed -> the reason
    """

    key: TaskKey
    task: Task
    questions: list[ProbeTask]
    left_out: dict[str, str]


def open_probe_tasks(
    labeled_sets: Sequence[LabeledSet],
    tasks: Sequence[Sequence[Task]],
    presets: Sequence[PresetName],
    seen: Mapping[str, Seen],
    *,
    folder: Path,
    exclude: Path | None,
    seed: int,
    uncertain: Uncertain | None,
    balance: Balance | None,
    split: Split,
    folds: int | None,
    repeats: int,
    allow_overlap: bool,
) -> list[DividedTask]:
    """Divide every dataset by every preset.

    Args:
        labeled_sets: the datasets
        tasks: the tasks of each dataset
        presets: names of the presets
        seen: what pretraining saw of each dataset, by its label; none if unknown
        folder: folder of the stored groups of near-identical images
        exclude: the `audit.json` whose copies are left out
        seed: determines parts and folds
        uncertain: replaces the meaning of uncertain labels in the tasks
        balance: replaces the balances of the tasks
        split: official, or ignore: divide a dataset with an official split a second time, as if it had none
        folds: replaces the folds of the presets
        repeats: repetitions of the cross-validation
        allow_overlap: accept test parts that pretraining saw

    Raises:
        UserError: if a dataset cannot be divided, or if pretraining saw its test part and `allow_overlap` is false.
    """
    opened = []
    for labeled_set, of_set in zip(labeled_sets, tasks, strict=True):
        left_out = None if exclude is None else _copies(labeled_set, exclude)
        groups = _groups(labeled_set, folder)
        certain = [task.with_uncertain(uncertain) for task in of_set]
        for variant in _variants(labeled_set, certain, balance, split):
            for name in presets:
                cohorts = build_cohorts(
                    labeled_set.label,
                    variant.task,
                    labeled_set.samples,
                    PRESETS[name],
                    seed=seed,
                    split=variant.split,
                    groups=groups if PRESETS[name].groups_duplicates else None,
                    left_out=left_out,
                    folds=folds,
                    repeats=repeats,
                )
                questions = [
                    _probe_task(labeled_set, variant, cohort, name, seen, groups) for cohort in cohorts.questions
                ]
                for question in questions:
                    _require_unseen(question.record, allow_overlap)
                for label, reason in cohorts.left_out.items():
                    say(f"{variant.label}, {name}: {label} is left out; the dataset {reason}")
                opened.append(DividedTask(TaskKey(variant.label, name), variant.task, questions, cohorts.left_out))
    return opened


class _Variant(NamedTuple):
    """A task of a labeled set and the way to divide it; the label names both in the tables."""

    label: str
    task: Task
    split: Split


def _variants(
    labeled_set: LabeledSet, tasks: Sequence[Task], balance: Balance | None, split: Split
) -> Iterator[_Variant]:
    """Yield the tasks of a labeled set, first by its official split, then, if asked for, without it."""
    if balance is not None:
        several = next((task for task in tasks if task.kind != "binary"), None)
        require(
            several is None or balance == "none",
            f"balance={balance} needs binary tasks, but {several.name if several else ''!r} has several labels; "
            "leave it out",
        )
        tasks = list(dict.fromkeys(replace(task, balance=balance) for task in tasks))
    labels = {task: _label(labeled_set, task, tasks) for task in tasks}
    for task, label in labels.items():
        yield _Variant(label, task, "official")
    for task, label in labels.items() if split == "ignore" else ():
        if {*task.test_splits} & {*labeled_set.samples.splits}:
            yield _Variant(f"{label}, split ignored", task, "ignore")
        else:
            say(f"{label}: has no official split to ignore")


def _label(labeled_set: LabeledSet, task: Task, tasks: Sequence[Task]) -> str:
    """Return the set's label, the task's name unless the set has it, and what distinguishes tasks of one name."""
    own = task.name in (labeled_set.manifest.dataset, labeled_set.label)
    first = next(other for other in tasks if other.name == task.name)
    against = "" if task.labels == first.labels else f", against {task.questions[0].negative_name}"
    balanced = "" if task.balance == first.balance else f", balanced by {task.balance}"
    return labeled_set.label + ("" if own else f", {task.name}") + against + balanced


def _probe_task(
    labeled_set: LabeledSet,
    variant: _Variant,
    cohort: Cohort,
    preset: PresetName,
    seen: Mapping[str, Seen],
    groups: Int64,
) -> ProbeTask:
    """Return a question of a task; one of several is named behind the task."""
    question = "" if variant.task.kind == "binary" else cohort.question.positive
    key = TaskKey(variant.label + (f": {question}" if question else ""), preset)
    record = _record(labeled_set, cohort, PRESETS[preset], key, question, seen.get(labeled_set.label))
    return ProbeTask(labeled_set, cohort, PRESETS[preset], record, groups)


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


def _record(
    labeled_set: LabeledSet, cohort: Cohort, preset: Preset, key: TaskKey, question: str, seen: Seen | None
) -> Dataset:
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
        task=cohort.task.name,
        question=question,
        uncertain=cohort.question.uncertain,
        unmentioned=cohort.question.unmentioned,
        positive=cohort.question.positive,
        negative=cohort.question.negative_name if cohort.task.kind != "multiclass" else "other classes",
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
