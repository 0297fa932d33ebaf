"""Tasks to probe: each labeled set, or two joined ones, as each preset divides it, with a record of its parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.data.answers import several_classes
from evaluation.data.cohort import Cohort, TaskCohorts, build_cohorts
from evaluation.data.external_cohort import build_external_cohorts
from evaluation.data.image_groups import image_groups
from evaluation.data.joined_sets import JoinedSets, ProbedSet
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.overlap import Seen
from evaluation.data.question_records import question_record, task_overlap
from evaluation.data.set_choice import choose_sets
from evaluation.data.task_variants import external_variants, rebalanced, variants
from evaluation.results.datasets import Dataset, TaskKey
from evaluation.results.notes import describe_overlap, describe_task_overlap
from evaluation.results.presets import PRESETS, Balance, Preset, PresetName, Split, Uncertain
from evaluation.results.task_scores import TaskOverlap
from evaluation.results.tasks import Task
from infra.arrays import Bool, Int64
from infra.errors import UserError
from infra.log import say
from sharding.auditing.set_names import require_one_set_per_name
from sharding.format.copies import read_copies
from sharding.format.writer import sample_identity


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """A question of a task as one preset divides it; compared by identity.

    Attributes:
        labeled_set: the set, or the two joined sets
        cohort: its images that answer the question, and their parts
        preset: the protocol
        record: the question's record in the results
        groups: (N,) one code for all samples of the set that are connected by a patient or a picture
    """

    labeled_set: ProbedSet
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
    """A task as one preset divides it; compared by identity.

    Attributes:
        key: label of the task in the tables, and the name of the preset
        task: the task
        questions: its questions
        left_out: positive label of each question that cannot be probed -> the reason
        overlap: what pretraining saw of the test images of any question; None if unknown
    """

    key: TaskKey
    task: Task
    questions: list[ProbeTask]
    left_out: dict[str, str]
    overlap: TaskOverlap | None


@dataclass(frozen=True)
class TaskOptions:
    """What decides how tasks are divided.

    Attributes:
        presets: names of the presets
        folder: folder of the stored groups of near-identical images
        seed: determines parts and folds
        train_on: name of the set that classifiers are fitted to; None if each set is probed by itself
        test_on: names of the sets that are tested by these classifiers; by default all others
        exclude: the `audit.json` whose copies are left out
        uncertain: replaces the meaning of uncertain labels in the tasks
        balance: replaces the balances of the tasks
        split: official, or ignore: divide a set with an official split a second time, as if it had none
        folds: replaces the folds of the presets
        repeats: repetitions of the cross-validation
        allow_overlap: accept test parts that pretraining saw
    """

    presets: Sequence[PresetName]
    folder: Path
    seed: int
    train_on: str | None = None
    test_on: Sequence[str] = ()
    exclude: Path | None = None
    uncertain: Uncertain | None = None
    balance: Balance | None = None
    split: Split = "official"
    folds: int | None = None
    repeats: int = 1
    allow_overlap: bool = False


def open_probe_tasks(
    labeled_sets: Sequence[LabeledSet],
    tasks: Sequence[Sequence[Task]],
    seen: Mapping[str, Seen],
    options: TaskOptions,
) -> list[DividedTask]:
    """Divide every set by every preset, alone or joined with the set that classifiers are fitted to.

    Args:
        labeled_sets: the sets
        tasks: the tasks of each set
        seen: what pretraining saw of each set, by its label; none if unknown
        options: what decides how tasks are divided

    Raises:
        UserError: if a set cannot be divided, or if pretraining saw its test part and that is not allowed.
    """
    alone, joined = choose_sets(labeled_sets, options.train_on, options.test_on)
    tasks_of = {
        labeled_set.label: rebalanced([task.with_uncertain(options.uncertain) for task in of_set], options.balance)
        for labeled_set, of_set in zip(labeled_sets, tasks, strict=True)
    }
    opened: list[DividedTask] = []
    for labeled_set in alone:
        opened += _divide_alone(labeled_set, tasks_of[labeled_set.label], seen, options)
    for sets in joined:
        opened += _divide_joined(sets, tasks_of[sets.fitted.label], tasks_of[sets.tested.label], seen, options)
    return opened


def _divide_alone(
    labeled_set: LabeledSet, tasks: Sequence[Task], seen: Mapping[str, Seen], options: TaskOptions
) -> Iterator[DividedTask]:
    """Divide the tasks of a set that is probed by itself."""
    left_out = None if options.exclude is None else _copies(labeled_set, options.exclude)
    groups = image_groups(labeled_set, options.folder)
    of_set = seen.get(labeled_set.label)
    for label, task, split in variants(labeled_set, tasks, options.split):
        _warn_of_several(label, task, labeled_set)
        for name in options.presets:
            cohorts = build_cohorts(
                labeled_set.label,
                task,
                labeled_set.samples,
                PRESETS[name],
                seed=options.seed,
                split=split,
                groups=groups if PRESETS[name].groups_duplicates else None,
                left_out=left_out,
                folds=options.folds,
                repeats=options.repeats,
            )
            yield _divided(labeled_set, TaskKey(label, name), task, cohorts, of_set, groups, options)


def _divide_joined(
    sets: JoinedSets,
    fitted_tasks: Sequence[Task],
    tested_tasks: Sequence[Task],
    seen: Mapping[str, Seen],
    options: TaskOptions,
) -> Iterator[DividedTask]:
    """Divide the tasks of a set that another one is tested on."""
    require_one_set_per_name(sets.shards)
    sets.warn_of_equal_names()
    both = sets.fitted, sets.tested
    left_out = None if options.exclude is None else np.concatenate([_copies(item, options.exclude) for item in both])
    groups = image_groups(sets, options.folder)
    of_sets = seen[sets.fitted.label].followed_by(seen[sets.tested.label]) if seen else None
    for label, pair, split in external_variants(sets, fitted_tasks, tested_tasks, options.split):
        for task, labeled_set in zip(pair, both, strict=True):
            _warn_of_several(labeled_set.label, task, labeled_set)
        for name in options.presets:
            cohorts = build_external_cohorts(
                label,
                sets,
                pair,
                PRESETS[name],
                seed=options.seed,
                split=split,
                groups=groups,
                left_out=left_out,
                folds=options.folds,
            )
            yield _divided(sets, TaskKey(label, name), pair.tested, cohorts, of_sets, groups, options, pair.fitted)


def _divided(
    probed: ProbedSet,
    key: TaskKey,
    task: Task,
    cohorts: TaskCohorts,
    seen: Seen | None,
    groups: Int64,
    options: TaskOptions,
    fitted_task: Task | None = None,
) -> DividedTask:
    """Return a task with the records of its questions; one of several is named behind the task."""
    preset = next(preset for name, preset in PRESETS.items() if name == key.preset)
    questions = []
    for cohort in cohorts.questions:
        named = key if task.kind == "binary" else TaskKey(f"{key.dataset}: {cohort.question.positive}", key.preset)
        record = question_record(probed, cohort, preset, named, seen, fitted_task)
        questions.append(ProbeTask(probed, cohort, preset, record, groups))
    overlap = task_overlap(probed, cohorts.questions, seen) if seen else None
    if overlap and overlap.images + overlap.patients > 0 and not options.allow_overlap:
        what = describe_overlap(questions[0].record) if task.kind == "binary" else describe_task_overlap(overlap)
        kept_apart = questions[0].cohort.is_official  # otherwise images of all splits are tested
        other_split = "pretrain on --data.splits=[train], " if kept_apart else ""
        raise UserError(
            f"dataset {key.dataset!r}: {what}, which flatters the checkpoints; leave these images out (sternum audit "
            f"PRETRAINING TESTED writes the audit.json for --exclude), {other_split}or pass --allow_overlap=true to "
            "have the rows marked"
        )
    for label, reason in cohorts.left_out.items():
        say(f"{key.dataset}, {key.preset}: {label} is left out; the dataset {reason}")
    return DividedTask(key, task, questions, cohorts.left_out, overlap)


def _warn_of_several(label: str, task: Task, labeled_set: LabeledSet) -> None:
    """Warn if images have several of the classes that are meant to exclude each other."""
    labels = labeled_set.samples.labels
    several = several_classes(task, labels)
    if several:
        say(
            f"warning: {label}: {several} of {len(labels)} images have several of the classes of {task.name} and take "
            "no part; if its labels can go together, write kind: multilabel in the task file"
        )


def _copies(labeled_set: LabeledSet, exclude: Path) -> Bool:
    """Return (N,) whether an image is a copy that an audit lists."""
    name = labeled_set.manifest.name
    copies = [sample_identity(name, key) for key in read_copies(exclude, name)]
    found: Bool = np.isin(labeled_set.samples.ids, np.array(copies, np.uint64))
    return found
