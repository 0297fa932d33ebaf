"""The records of questions in the results: their parts, and what pretraining saw of these."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from evaluation.data.cohort import Cohort
from evaluation.data.joined_sets import JoinedSets, ProbedSet
from evaluation.data.labeled_sets import is_simulated
from evaluation.data.overlap import Seen
from evaluation.results.datasets import Dataset, FittedSet, PartSize, SeenPart, TaskKey
from evaluation.results.presets import Preset
from evaluation.results.task_scores import TaskOverlap
from evaluation.results.tasks import Task
from infra.arrays import Bool, Int64
from infra.urls import shown


def question_record(
    probed: ProbedSet, cohort: Cohort, preset: Preset, key: TaskKey, seen: Seen | None, fitted_task: Task | None
) -> Dataset:
    """Return the record of a question.

    Args:
        probed: the set, or the two joined sets
        cohort: the images of the question
        preset: the protocol
        key: key of the rows
        seen: what pretraining saw of the samples; None if unknown
        fitted_task: the task as the fitted set of two answers it
    """
    in_test = cohort.in_test.any(axis=0)
    tested = cohort.rows[in_test]
    patients = probed.samples.patient_ids[tested]
    labeled_set = probed.tested if isinstance(probed, JoinedSets) else probed
    images = _certain(seen, int(seen.images[tested].sum())) if seen else None
    people = _certain(seen, len(np.unique(patients[seen.images[tested] | seen.patients[tested]]))) if seen else None
    return Dataset(
        label=key.dataset,
        preset=key.preset,
        name=labeled_set.manifest.dataset,
        folder=shown(labeled_set.location),
        identity=labeled_set.identity,
        simulated=any(map(is_simulated, probed.manifests)),
        task=cohort.task.name,
        question="" if cohort.task.kind == "binary" else cohort.question.positive,
        uncertain=cohort.question.uncertain,
        unmentioned=cohort.question.unmentioned,
        positive=cohort.question.positive,
        negative=_negative(cohort.task, cohort.task.questions.index(cohort.question)),
        balance=cohort.task.balance,
        split=cohort.split,
        rounds=len(cohort.folds),
        development=_part_size(probed, cohort, preset, cohort.in_development),
        test=_part_size(probed, cohort, preset, cohort.in_test),
        excluded=cohort.excluded,
        pretrained_images=images,
        pretrained_patients=people,
        pretrained_parts=_seen_parts(seen, tested, cohort.classes[in_test]) if seen else [],
        pictures_compared=seen.pictures_compared if seen else None,
        not_square=int(np.sum(np.diff(probed.samples.sizes[cohort.rows]) != 0)),
        fitted_on=_fitted_set(probed, cohort, fitted_task) if fitted_task and isinstance(probed, JoinedSets) else None,
    )


def _certain(seen: Seen, count: int) -> int | None:
    """Return how many are seen; None if none are, as far as some of the trainings tell."""
    return count if count or seen.is_whole else None


def task_overlap(probed: ProbedSet, cohorts: Sequence[Cohort], seen: Seen) -> TaskOverlap | None:
    """Return what pretraining saw of the test images of any question of a task; None if that is unknown."""
    tested = np.unique(np.concatenate([cohort.rows[cohort.in_test.any(axis=0)] for cohort in cohorts]))
    known = tested[seen.images[tested] | seen.patients[tested]]
    places = Counter(seen.places[row] for row in tested.tolist() if seen.images[row])
    if not len(known) and not seen.is_whole:
        return None
    return TaskOverlap(
        images=int(seen.images[tested].sum()),
        patients=len(np.unique(probed.samples.patient_ids[known])),
        places=dict(sorted(places.items())),
    )


def _negative(task: Task, number: int) -> str:
    return task.questions[number].negative_name if task.kind != "multiclass" else "other classes"


def _fitted_set(sets: JoinedSets, cohort: Cohort, task: Task) -> FittedSet:
    number = cohort.task.questions.index(cohort.question)
    return FittedSet(
        label=sets.fitted.label,
        name=sets.fitted.manifest.dataset,
        folder=shown(sets.fitted.location),
        identity=sets.fitted.identity,
        task=task.name,
        positive=task.questions[number].positive,
        negative=_negative(task, number),
        balance=task.balance,
    )


def _seen_parts(seen: Seen, tested: Int64, classes: Int64) -> list[SeenPart]:
    """Count the tested rows (n,) of the two classes (n,) by the place in which pretraining saw them."""
    images = Counter((seen.places[row], code) for row, code in zip(tested.tolist(), classes.tolist(), strict=True))
    places = sorted({place for place, _ in images if place})
    return [SeenPart(place, positive=images[place, 1], negative=images[place, 0]) for place in places]


def _part_size(probed: ProbedSet, cohort: Cohort, preset: Preset, inside: Bool) -> PartSize:
    """Count what a part (rounds, n) holds in any round: images, patients, and the groups that replace patients."""
    ever = inside.any(axis=0)
    patients = len(np.unique(probed.samples.patient_ids[cohort.rows[ever]]))
    groups = len(np.unique(cohort.patients[ever])) if preset.groups_duplicates else None
    positive, images = int(cohort.classes[ever].sum()), int(ever.sum())
    return PartSize(images, patients, positive, images - positive, groups)
