"""From chosen classifiers to rows: scores with intervals, neighbours, calibration, subgroups, comparisons."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation.data.samples import Samples
from evaluation.fitting.finetune import FinetunedNetwork
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe
from evaluation.results.results import Calibration, Comparison, FewLabels, Gap, ProbeResult, Subgroup
from evaluation.scoring.calibration import calibration, platt, recalibrate
from evaluation.scoring.scores import Predictions, auc_difference, score, youden_threshold
from evaluation.scoring.subgroups import age_group, subgroups

NEIGHBORS: Final = 20
_HALF: Final = 0.5


def thresholds(entry: ProbeCase, rounds: Sequence[FittedProbe]) -> list[float]:
    """Return the threshold of each round: 0.5, or Youden's on the out-of-fold probabilities."""
    if not entry.preset.chooses_threshold:
        return [_HALF] * len(rounds)
    return [
        youden_threshold(classes[fold >= 0], chosen.validation)
        for classes, fold, chosen in zip(entry.classes, entry.folds, rounds, strict=True)
    ]


def predictions(entry: ProbeCase, rounds: Sequence[FittedProbe]) -> Predictions:
    """Return what the chosen classifiers say of the test images, all rounds below each other."""
    chosen = zip(rounds, thresholds(entry, rounds), strict=True)
    return Predictions(
        classes=_of_test(entry, entry.classes),
        probabilities=np.concatenate([one.probabilities for one in rounds]),
        decisions=np.concatenate([one.probabilities > threshold for one, threshold in chosen]),
        patients=_of_test(entry, np.tile(entry.patients, (len(rounds), 1))),
        parts=_of_test(entry, np.repeat(np.arange(len(rounds))[:, None], len(entry.patients), axis=1)),
    )


def _of_test(entry: ProbeCase, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the values (rounds, n) of the test parts, round after round."""
    of_test: npt.NDArray[np.int64] = values[entry.folds == -1]
    return of_test


def probe_result(
    entry: ProbeCase, rounds: Sequence[FittedProbe], samples: Samples | None, *, resamples: int, seed: int
) -> ProbeResult:
    """Score an entry; with `samples` also its calibration and its subgroups."""
    said = predictions(entry, rounds)
    found: list[Subgroup] = []
    gaps: list[Gap] = []
    if samples is not None:
        told = {
            "sex": [samples.sexes[row] for row in _rows(entry)],
            "age": [age_group(samples.ages[row]) for row in _rows(entry)],
            "view": [samples.views[row] for row in _rows(entry)],
        }
        known = {name: groups for name, groups in told.items() if len(set(groups)) > 1}
        found, gaps = subgroups(said, known, resamples=resamples, seed=seed)
    return ProbeResult(
        dataset=entry.dataset,
        preset=entry.preset_name,
        features=entry.name,
        kind=entry.kind,
        epoch=entry.epoch,
        step=entry.step,
        size=entry.stored.values.shape[1],
        c=[one.c for one in rounds],
        at_edge=sum(one.at_edge for one in rounds),
        threshold=thresholds(entry, rounds),
        validation_auc=float(np.mean([one.validation_auc for one in rounds])),
        scores=score(said, resamples=resamples, seed=seed),
        knn_auc=neighbors_auc(entry),
        fits=sum(one.fits for one in rounds),
        unconverged=sum(one.unconverged for one in rounds),
        calibration=_calibration(entry, rounds, said) if samples is not None else None,
        subgroups=found,
        gaps=gaps,
    )


def _rows(entry: ProbeCase) -> list[int]:
    """The rows of the test images, round after round."""
    return [int(row) for row in _of_test(entry, np.tile(entry.rows, (len(entry.folds), 1)))]


def _calibration(entry: ProbeCase, rounds: Sequence[FittedProbe], said: Predictions) -> Calibration:
    """Recalibrate each round by its own out-of-fold probabilities, then pool the test parts."""
    parts = [
        recalibrate(chosen.probabilities, *platt(classes[fold >= 0], chosen.validation))
        for classes, fold, chosen in zip(entry.classes, entry.folds, rounds, strict=True)
    ]
    return calibration(said.classes, said.probabilities, np.concatenate(parts))


def neighbors_auc(entry: ProbeCase) -> float:
    """Return the mean AUC over the rounds of the nearest neighbours by cosine: no training, nothing to choose.

    The positive class's share among the 20 nearest development images, each weighted by the inverse of its distance.
    """
    values = entry.stored.values
    aucs = []
    for classes, fold in zip(entry.classes, entry.folds, strict=True):
        fitted, asked = fold >= 0, fold == -1
        model = KNeighborsClassifier(min(NEIGHBORS, int(fitted.sum())), weights="distance", metric="cosine")
        model.fit(values[entry.rows[fitted]], classes[fitted])
        said = model.predict_proba(values[entry.rows[asked]])[:, 1]
        aucs.append(roc_auc_score(classes[asked], said))
    return float(np.mean(aucs))


def finetuned_result(one: ProbeCase, found: FinetunedNetwork, *, resamples: int, seed: int) -> ProbeResult:
    """Score a network that was fine-tuned on the one round of an entry; its threshold is chosen as a probe's is."""
    classes, test = one.classes[0], one.folds[0] == -1
    validated = classes[found.validation_rows]
    threshold = youden_threshold(validated, found.validation) if one.preset.chooses_threshold else _HALF
    said = Predictions(
        classes[test],
        found.probabilities,
        found.probabilities > threshold,
        one.patients[test],
        np.zeros(int(test.sum()), np.int64),
    )
    return ProbeResult(
        dataset=one.dataset,
        preset=one.preset_name,
        features=f"{one.name}, fine-tuned",
        kind="finetuned",
        epoch=one.epoch,
        step=one.step,
        size=one.stored.values.shape[1],
        c=[],
        at_edge=0,
        threshold=[threshold],
        validation_auc=found.validation_auc,
        scores=score(said, resamples=resamples, seed=seed),
        knn_auc=None,
        fits=0,
        unconverged=0,
    )


def comparison(
    last: ProbeCase, other: ProbeCase, of_last: Predictions, of_other: Predictions, *, resamples: int, seed: int
) -> Comparison:
    """Hold the last checkpoint's AUC against that of other features on the same test images."""
    difference = auc_difference(of_last, of_other, resamples=resamples, seed=seed)
    return Comparison(last.dataset, last.preset_name, last.name, other.name, difference)


def few_labels_result(entry: ProbeCase, rounds: Sequence[FittedProbe], features: str, percent: int) -> FewLabels:
    """Return the test AUC of each draw of the labels."""
    aucs = []
    for classes, fold, chosen in zip(entry.classes, entry.folds, rounds, strict=True):
        aucs.append(float(roc_auc_score(classes[fold == -1], chosen.probabilities)))
    images = float(np.mean([(fold >= 0).sum() for fold in entry.folds]))
    return FewLabels(entry.dataset, entry.preset_name, features, percent, images, aucs)
