"""How often the intervals of a probe hold the truth, in simulated studies whose truth is known.

"one part": a classifier scores diseased and healthy patients by two normal distributions; every study draws new
patients. "difference": two classifiers score the same patients. "cross-validation": every study draws patients, fits
logistic regressions as a nested cross-validation does, and asks for the mean AUC of such classifiers on all patients.

Coverage is in percent, with the standard error of the simulation. "fixed classifiers" is the interval that
cross-validation would have without widening, "all patients" that of Student's t with all patients instead of the
smaller class, as in results of version 2.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtrit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from benchmarks.common import machine, table
from evaluation.results.scores import Estimate
from evaluation.scoring.delong import delong_difference
from evaluation.scoring.intervals import estimate_difference
from evaluation.scoring.scores import (
    Predictions,
    auc_difference,
    auc_estimate,
    auc_evidence,
    resampled_aucs,
    score,
)
from infra.arrays import Float64, Int64

FOLDS: Final = 5
_C: Final = 0.1
_INFORMATIVE: Final = 5  # features that depend on the class
_GRID: Final = np.linspace(-8, 12, 20_001)


@dataclass(frozen=True)
class Part:
    """A test part: patients of each class, images of each patient, and the AUC on all patients.

    Attributes:
        positive: diseased patients
        negative: healthy patients
        auc: the truth
        images: images of each patient
        within: share of the variance of a patient's images that lies between these
    """

    positive: int
    negative: int
    auc: float
    images: int = 1
    within: float = 1.0

    @property
    def shift(self) -> float:
        """Distance of the classes in standard deviations."""
        return float(np.sqrt(2) * norm.ppf(self.auc))

    @property
    def truths(self) -> dict[str, float]:
        """Return the scores on all patients, with the threshold halfway between the classes."""
        rate = float(norm.cdf(self.shift / 2))  # sensitivity and specificity
        share = self.positive / (self.positive + self.negative)
        true, false = share * norm.sf(_GRID - self.shift), (1 - share) * norm.sf(_GRID)
        precision = true / np.maximum(true + false, 1e-300)
        return {
            **{"auc": self.auc, "acc": rate, "sen": rate, "spe": rate},
            "ap": float(np.trapezoid(precision * norm.pdf(_GRID - self.shift), _GRID)),
            **{"f1": _f1(rate, share), "f1_negative": _f1(rate, 1 - share)},
        }


def _f1(rate: float, share: float) -> float:
    return 2 * share * rate / (2 * share * rate + share * (1 - rate) + (1 - share) * (1 - rate))


PARTS: Final = (
    Part(8, 400, 0.85),
    Part(15, 400, 0.85),
    Part(15, 400, 0.95),
    Part(10, 100, 0.90),
    Part(20, 400, 0.90),
    Part(234, 390, 0.96),
    Part(10, 100, 0.90, images=4, within=0.1),
    Part(30, 30, 0.85, images=4, within=0.1),
)
COMPARED: Final = (Part(10, 100, 0.90), Part(20, 400, 0.90), Part(234, 390, 0.96))


@dataclass(frozen=True)
class Crossing:
    """A cross-validated study: patients with one image each, features, their strength, and repetitions."""

    patients: int
    features: int
    strength: float
    repeats: int = 1


CROSSINGS: Final = (
    Crossing(100, 64, 0.8),
    Crossing(200, 64, 0.6),
    Crossing(600, 64, 0.4),
    Crossing(200, 8, 0.6),
    Crossing(200, 512, 0.8),
    Crossing(200, 64, 0.6, repeats=5),
)


class Crossed(NamedTuple):
    """A cross-validated study, and the mean AUC of its classifiers on all patients."""

    predictions: Predictions
    truth: float


def draw_part(part: Part, seed: int) -> Predictions:
    """Draw one study of a test part."""
    return _predictions(part, *_draw_scores(part, np.random.default_rng(seed)))


def draw_pair(part: Part, seed: int) -> tuple[Predictions, Predictions]:
    """Draw one study in which two equally good classifiers score the same images, correlated at one half."""
    random = np.random.default_rng(seed)
    classes, common = _draw_scores(part, random)
    center = part.shift * classes
    noise = random.normal(size=(2, len(classes)))
    first, second = center + (common - center + noise) / np.sqrt(2)
    return _predictions(part, classes, first), _predictions(part, classes, second)


def _draw_scores(part: Part, random: np.random.Generator) -> tuple[Int64, Float64]:
    classes = np.repeat([1, 0], [part.positive * part.images, part.negative * part.images])
    between = random.normal(size=part.positive + part.negative).repeat(part.images)
    noise = np.sqrt(1 - part.within) * between + np.sqrt(part.within) * random.normal(size=len(classes))
    return classes, part.shift * classes + noise


def _predictions(part: Part, classes: Int64, values: Float64) -> Predictions:
    patients = np.arange(part.positive + part.negative).repeat(part.images)
    return Predictions(classes, expit(values), values > part.shift / 2, patients, np.zeros_like(classes))


def draw_crossings(study: Crossing, seed: int) -> tuple[Crossed, Crossed]:
    """Draw one cross-validated study with two sets of features; the second set is the first with noise."""
    random = np.random.default_rng(seed)
    classes = np.arange(study.patients) % 2
    direction = np.zeros(study.features)
    direction[:_INFORMATIVE] = study.strength
    values = random.normal(size=(study.patients, study.features)) + np.outer(classes - 0.5, direction)
    noisy = 0.8 * values + 0.6 * random.normal(size=values.shape)
    return _cross(study, values, classes, direction, seed), _cross(study, noisy, classes, 0.8 * direction, seed)


def _cross(study: Crossing, values: Float64, classes: Int64, direction: Float64, seed: int) -> Crossed:
    tested, probabilities, parts, truths = [], [], [], []
    for repeat in range(study.repeats):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=1000 * seed + repeat)
        for number, (training, test) in enumerate(folds.split(values, classes)):
            model = LogisticRegression(C=_C, max_iter=300).fit(values[training], classes[training])
            weights = model.coef_[0]
            truths.append(norm.cdf(weights @ direction / np.sqrt(2 * weights @ weights)))
            tested.append(test)
            probabilities.append(model.predict_proba(values[test])[:, 1])
            parts.append(np.full(len(test), repeat * FOLDS + number))
    patients, scored = np.concatenate(tested), np.concatenate(probabilities)
    return Crossed(
        Predictions(classes[patients], scored, scored > 0.5, patients, np.concatenate(parts)), float(np.mean(truths))
    )


class Coverage(NamedTuple):
    """Share of studies whose interval holds the truth, its standard error, and the share without an interval."""

    percent: float
    error: float
    without: float


def coverage(estimates: Sequence[Estimate], truth: float) -> Coverage:
    """Return how often intervals hold the truth, among those that exist."""
    made = [(item.low, item.high) for item in estimates if item.low is not None and item.high is not None]
    share = float(np.mean([low <= truth <= high for low, high in made]))
    error = np.sqrt(share * (1 - share) / len(made))
    return Coverage(
        round(100 * share, 1), round(100 * float(error), 1), round(100 - 100 * len(made) / len(estimates), 1)
    )


def measure_part(part: Part, studies: int, resamples: int) -> dict[str, Coverage]:
    """Return the coverage of every score, and of an AUC's interval with all patients' degrees of freedom."""
    scores = [score(draw_part(part, seed), resamples=resamples, seed=seed) for seed in range(studies)]
    found = {name: coverage([getattr(item, name) for item in scores], truth) for name, truth in part.truths.items()}
    smaller, everyone = min(part.positive, part.negative), part.positive + part.negative
    narrower = float(stdtrit(everyone - 1, 0.975) / stdtrit(smaller - 1, 0.975))
    return {**found, "auc, all patients": coverage([_scaled(item.auc, narrower) for item in scores], part.auc)}


def _scaled(made: Estimate, factor: float) -> Estimate:
    """Return an interval whose width on the logit scale is multiplied; a share of 0 or 1 loses its interval."""
    if made.low is None or made.high is None or made.value in (0, 1):
        return Estimate(made.value)
    center, low, high = logit([made.value, made.low, made.high])
    bounds = expit([center + factor * (low - center), center + factor * (high - center)])
    return Estimate(made.value, float(bounds[0]), float(bounds[1]))


def measure_difference(part: Part, studies: int, resamples: int) -> dict[str, Coverage]:
    """Return the coverage of the difference of two equal AUCs by the bootstrap and by DeLong."""
    pairs = [draw_pair(part, seed) for seed in range(studies)]
    return {
        "bootstrap": coverage(
            [auc_difference(*pair, resamples=resamples, seed=seed) for seed, pair in enumerate(pairs)], 0.0
        ),
        "DeLong": coverage([delong_difference(*pair) for pair in pairs], 0.0),
    }


def measure_crossing(study: Crossing, studies: int, resamples: int) -> dict[str, Coverage]:
    """Return the coverage of the mean AUC of such classifiers, and of the difference of two such means."""
    pairs = [draw_crossings(study, seed) for seed in range(studies)]
    truths = [float(np.mean([pair[number].truth for pair in pairs])) for number in (0, 1)]
    aucs, differences = [], []
    for seed, (first, second) in enumerate(pairs):
        both = first.predictions, second.predictions
        resampled = [resampled_aucs(item, resamples=resamples, seed=seed) for item in both]
        estimates = [auc_estimate(*pair) for pair in zip(both, resampled, strict=True)]
        evidence = auc_evidence(both[0])
        aucs.append(estimates[0])
        differences.append(estimate_difference(estimates[0], estimates[1], resampled[0] - resampled[1], evidence))
    fixed = [_scaled(item, evidence.variance_factor**-0.5) for item in aucs]
    return {
        "AUC": coverage(aucs, truths[0]),
        "AUC, fixed classifiers": coverage(fixed, truths[0]),
        "difference": coverage(differences, truths[0] - truths[1]),
    }


def measure_all(studies: int, resamples: int) -> Iterator[dict[str, Any]]:
    """Yield one record for each setting."""
    plans: list[tuple[str, Sequence[Any], Callable[[Any, int, int], dict[str, Coverage]]]] = [
        ("one part", PARTS, measure_part),
        ("difference", COMPARED, measure_difference),
        ("cross-validation", CROSSINGS, measure_crossing),
    ]
    for name, settings, measure in plans:
        for setting in settings:
            found = measure(setting, studies, resamples)
            yield {
                "intervals": name,
                "setting": asdict(setting),
                "coverage": {key: value._asdict() for key, value in found.items()},
            }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each kind of interval, and write the figures as JSON, setting by setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000, help="simulated studies of each setting")
    parser.add_argument("--resamples", type=int, default=300, help="bootstrap resamples of each study")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    content = {
        "studies": options.studies,
        "resamples": options.resamples,
        "machine": machine("numpy", "scipy", "scikit-learn"),
    }
    records = []
    for record in measure_all(options.studies, options.resamples):
        records.append(record)
        if options.out:
            options.out.write_text(json.dumps({**content, "results": records}, indent=1) + "\n")
    for name in dict.fromkeys(record["intervals"] for record in records):
        print(f"{name}: coverage of 95 % intervals, percent\n{_table(name, records)}\n")


def _table(name: str, records: Sequence[dict[str, Any]]) -> str:
    listed = [record for record in records if record["intervals"] == name]
    header = list(listed[0]["coverage"])
    rows = [
        (
            ", ".join(f"{key} {value:g}" for key, value in record["setting"].items()),
            *(f"{record['coverage'][key]['percent']:.1f}" for key in header),
        )
        for record in listed
    ]
    return table([name, *header], rows)


if __name__ == "__main__":
    main()
