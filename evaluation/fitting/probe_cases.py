"""What becomes a row of the table: features, with the classes and parts on which they are probed, round by round."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import sklearn

from evaluation.data.feature_sources import FeatureMatrix, FeatureSource
from evaluation.data.labeled_sets import ProbeTask
from evaluation.data.protocol import Bools, Ints, divide
from evaluation.fitting.search import SearchProblem
from evaluation.results.presets import Preset
from evaluation.results.results import Kind
from infra.rng import permutation

UNUSED: Final = -2  # the fold of an image that takes no part in a round
FEW_PERCENT: Final = (1, 5, 10, 25)
_FEW_DRAWS: Final = 5
_FEW_FOLDS: Final = 3
_VERSION: Final = 1  # of how classifiers are fitted; raise it when that changes, so that kept ones are fitted again


@dataclass(frozen=True)
class ProbeCase:
    """One feature set on one dataset and preset.

    dataset, name: as in the row. rows: (n,) rows of the features. classes, folds: (rounds, n); folds are from 0 in the
    development part, -1 in the test part, UNUSED elsewhere. patients: (n,).
    """

    dataset: str
    preset_name: str
    preset: Preset
    name: str
    kind: Kind
    epoch: float | None
    step: int | None
    stored: FeatureMatrix
    rows: Ints
    patients: Ints
    classes: Ints
    folds: Ints

    @property
    def key(self) -> str:
        """What tells it from all other entries of a probe."""
        return f"{self.name} on {self.dataset} ({self.preset_name})"

    def problems(self) -> Iterator[tuple[str, str, SearchProblem]]:
        """Yield for each round what it is called, a hash of all its outcome depends on, and the problem."""
        for number, (classes, fold) in enumerate(zip(self.classes, self.folds, strict=True), start=1):
            used = fold != UNUSED
            problem = SearchProblem(
                features=self.stored.identity,
                rows=self.rows[used],
                classes=classes[used],
                fold=fold[used],
                standardize=self.preset.standardize,
                c_grid=self.preset.c_grid,
                max_iterations=self.preset.max_iterations,
            )
            yield f"{self.key}, round {number} of {len(self.folds)}", _identity(problem), problem


def _identity(problem: SearchProblem) -> str:
    options = (problem.standardize, tuple(problem.c_grid), problem.max_iterations)
    digest = hashlib.sha256(f"{_VERSION} {sklearn.__version__} {problem.features} {options}".encode())
    for values in (problem.rows, problem.classes, problem.fold):
        digest.update(np.ascontiguousarray(values, np.int64).tobytes())
    return digest.hexdigest()


def probe_case(target: ProbeTask, source: FeatureSource, stored: FeatureMatrix) -> ProbeCase:
    """Return the entry of features on a target's own classes and parts."""
    cohort = target.cohort
    return ProbeCase(
        dataset=target.facts.label,
        preset_name=target.facts.preset,
        preset=target.preset,
        name=source.name,
        kind=source.kind,
        epoch=source.epoch,
        step=source.step,
        stored=stored,
        rows=cohort.rows,
        patients=cohort.patients,
        classes=np.tile(cohort.classes, (len(cohort.folds), 1)),
        folds=cohort.folds,
    )


def derived_case(of: ProbeCase, name: str, kind: Kind, stored: FeatureMatrix | None = None) -> ProbeCase:
    """Return a control on the same classes and parts, with other features if any are given."""
    return replace(of, name=name, kind=kind, epoch=None, step=None, stored=stored or of.stored)


def shuffled_case(of: ProbeCase, seed: int) -> ProbeCase:
    """Return the entry with the patients' classes dealt out anew: its AUC must be about 0.5, else something leaks.

    Within every fold and the test part a patient gets the classes of another one's images, so parts keep their shares
    and the images of a patient stay alike.
    """
    classes = np.stack([_dealt(*pair, of.patients, seed, number) for number, pair in enumerate(_pairs(of))])
    return replace(derived_case(of, f"{of.name}, shuffled labels", "shuffled"), classes=classes)


def _pairs(of: ProbeCase) -> Iterator[tuple[Ints, Ints]]:
    yield from zip(of.classes, of.folds, strict=True)


def _dealt(classes: Ints, fold: Ints, patients: Ints, seed: int, number: int) -> Ints:
    dealt = classes.copy()
    for part in np.unique(fold):
        inside = np.flatnonzero(fold == part)
        images = [inside[patients[inside] == code] for code in np.unique(patients[inside])]
        for attempt in range(100):  # a part in which one patient has most images may come out with one class
            order = permutation(len(images), seed, f"probe-shuffle-{part}", number, attempt)
            for own, other in zip(images, order, strict=True):
                dealt[own] = np.resize(classes[images[other]], len(own))
            if len(np.unique(dealt[inside])) == 2:
                break
        else:
            dealt[inside] = classes[inside][permutation(len(inside), seed, "probe-shuffle-images", number)]
    return dealt


def dataset_source_case(
    targets: Sequence[ProbeTask], stored: Mapping[str, FeatureMatrix], of: ProbeCase, both: FeatureMatrix
) -> ProbeCase:
    """Return the entry that tells a dataset's images from those of the other datasets, with the features `of` has.

    stored: the features of each dataset, by the label of its folder; both: these below each other, in that order.
    """
    first = dict(zip(stored, _starts(stored), strict=True))
    rows, patients, classes, folds = [], [], [], []
    for number, target in enumerate(targets):
        cohort = target.cohort
        rows.append(cohort.rows + first[target.packed.label])
        patients.append(cohort.patients * len(targets) + number)
        classes.append(np.full(len(cohort.rows), int(target.facts.label == of.dataset)))
        folds.append(cohort.folds[0])
    return replace(
        derived_case(of, f"{of.name}, this data set or another", "source", both),
        rows=np.concatenate(rows),
        patients=np.concatenate(patients),
        classes=np.concatenate(classes)[None],
        folds=np.concatenate(folds)[None],
    )


def _starts(stored: Mapping[str, FeatureMatrix]) -> list[int]:
    sizes = [len(one.values) for one in stored.values()]
    return [sum(sizes[:number]) for number in range(len(sizes))]


def few_labels_case(of: ProbeCase, percent: int, seed: int) -> ProbeCase | None:
    """Return the entry fitted to the labels of some development patients only, one draw of them a round.

    So many percent of the patients of each class, at least three, the same ones among more; C is chosen among them
    alone. With one test part there are five draws, else one for each part. None where so few patients cannot be
    divided into three folds that hold both classes.
    """
    rounds = [
        (pair[0], pair[1], draw) for pair in _pairs(of) for draw in range(_FEW_DRAWS if len(of.folds) == 1 else 1)
    ]
    folds = [
        _few(classes, fold, of.patients, percent, seed, f"probe-few-{number}-{draw}")
        for number, (classes, fold, draw) in enumerate(rounds)
    ]
    if any(fold is None for fold in folds):
        return None
    return replace(
        of,
        name=f"{of.name}, {percent} % of the labels",
        classes=np.stack([classes for classes, _, _ in rounds]),
        folds=np.stack([fold for fold in folds if fold is not None]),
    )


def _few(classes: Ints, fold: Ints, patients: Ints, percent: int, seed: int, stream: str) -> Ints | None:
    """(n,) new folds: -1 in the test part, from 0 among the patients drawn, UNUSED elsewhere."""
    develops = fold >= 0
    drawn: Bools = np.zeros(len(fold), np.bool_)
    positive = np.unique(patients[develops & (classes == 1)])
    for of_class in (positive, np.setdiff1d(patients[develops], positive)):
        count = max(_FEW_FOLDS, round(percent / 100 * len(of_class)))
        if count > len(of_class):
            return None
        drawn |= develops & np.isin(patients, of_class[permutation(len(of_class), seed, stream)[:count]])
    few = np.where(fold < 0, fold, UNUSED)
    few[drawn] = divide(classes[drawn], patients[drawn], _FEW_FOLDS, seed, stream)
    complete = all(len(np.unique(classes[few == number])) == 2 for number in range(_FEW_FOLDS))
    return few if complete else None
