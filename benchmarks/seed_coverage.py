"""How often intervals over seeds and patients hold the truth, in simulated studies whose truth is known.

In every study two equal recipes are applied with a few seeds each and tested on the same new patients. "difference" is
the interval of their difference, whose truth is 0; "mean AUC" that of one recipe's mean AUC over all seeds and
patients; "patients alone" is the difference's interval if the seeds are taken for all there are.

Coverage is in percent; its standard error at 95 % and 300 studies is 1.3.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from benchmarks.common import machine, table
from evaluation.results.scores import Estimate
from evaluation.scoring.recipes import recipe_auc, recipe_difference
from evaluation.scoring.scores import Predictions
from infra.arrays import Float64
from infra.log import progress


@dataclass(frozen=True)
class Study:
    """Two recipes of the same AUC, tested on patients with two images each, of whom 2 in 5 are ill.

    Attributes:
        seeds: runs of each recipe
        patients: test patients
        between: standard deviation over the seeds of the distance between the classes; 0.1 is 0.7 points of AUC
        auc: AUC at the mean distance
    """

    seeds: int
    patients: int
    between: float
    auc: float = 0.95

    @property
    def truth(self) -> float:
        """The mean AUC over all seeds and patients."""
        return float(norm.cdf(np.sqrt(2) * norm.ppf(self.auc) / np.sqrt(2 + self.between**2)))


class Coverage(NamedTuple):
    """Shares of the intervals that hold the truth, in percent, and the median width of the first ones in points."""

    difference: float
    mean_auc: float
    patients_alone: float
    width: float


def draw_recipe(random: np.random.Generator, shared: Float64, study: Study) -> list[Predictions]:
    """Return the predictions of one recipe with each seed.

    Seven tenths of an image's variance is the patient's and the same for all runs, the rest is the run's own.

    Args:
        random: draws the runs
        shared: (patients,) what all runs see in a patient
        study: the recipe
    """
    patient = np.repeat(np.arange(len(shared)), 2)
    classes = (patient % 5 < 2).astype(np.int64)
    runs = []
    for _ in range(study.seeds):
        distance = np.sqrt(2) * norm.ppf(study.auc) + study.between * random.normal()
        own = random.normal(size=len(shared))[patient]
        values = distance * (classes - 0.5) + np.sqrt(0.7) * shared[patient] + np.sqrt(0.3) * own
        runs.append(Predictions(classes, expit(values), values > 0, patient, np.zeros_like(patient)))
    return runs


def measure(study: Study, studies: int, resamples: int) -> Coverage:
    """Simulate studies and count the intervals that hold the truth."""
    held, widths = [], []
    for number in range(studies):
        random = np.random.default_rng([number, study.seeds, study.patients])
        shared = random.normal(size=study.patients)
        first, second = (draw_recipe(random, shared, study) for _ in range(2))
        options = {"resamples": resamples, "seed": number}
        difference = recipe_difference(first, second, **options)
        # One image for each run, whose parts are ranked apart: a mean AUC whose interval knows patients alone.
        alone = recipe_difference([_pooled(first)], [_pooled(second)], **options)
        mean_auc = recipe_auc(first, **options)
        held.append([_holds(difference, 0.0), _holds(mean_auc, study.truth), _holds(alone, 0.0)])
        widths.append((difference.high or 0.0) - (difference.low or 0.0))
    difference_held, mean_held, alone_held = (100 * np.mean(held, axis=0)).tolist()
    return Coverage(difference_held, mean_held, alone_held, 100 * float(np.median(widths)))


def _pooled(runs: Sequence[Predictions]) -> Predictions:
    names = vars(runs[0]).keys() - {"parts"}
    parts = np.repeat(np.arange(len(runs)), len(runs[0].classes))
    return Predictions(**{name: np.concatenate([vars(run)[name] for run in runs]) for name in names}, parts=parts)


def _holds(estimate: Estimate, truth: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=300, help="simulated studies for each line")
    parser.add_argument("--resamples", type=int, default=200, help="resamples of the patients in each study")
    parser.add_argument("--out", type=Path, default=Path("coverage.json"), help="the JSON file")
    options = parser.parse_args(arguments)
    grid = [Study(seeds, 200, between) for seeds in (2, 3, 5) for between in (0.0, 0.1, 0.3)]
    measured = [
        (study, measure(study, options.studies, options.resamples))
        for study in progress(grid, "simulating", len(grid), unit="line")
    ]
    lines = [
        (
            str(study.seeds),
            str(study.patients),
            f"{study.between:g}",
            *(f"{share:.1f}" for share in coverage[:3]),
            f"{coverage.width:.1f}",
        )
        for study, coverage in measured
    ]
    header = ("seeds", "patients", "SD of seeds", "difference", "mean AUC", "patients alone", "width")
    print(table(header, lines))
    content = {
        "studies": options.studies,
        "resamples": options.resamples,
        "units": {"difference": "%", "mean_auc": "%", "patients_alone": "%", "width": "points of AUC"},
        "lines": [asdict(study) | coverage._asdict() for study, coverage in measured],
        "machine": machine("numpy", "scipy"),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
