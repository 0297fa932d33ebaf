"""Rows of the results from fitted probes: scores with intervals, neighbors, calibration, subgroups, comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation.fitting.case_list import FewLabelsCase, last_case
from evaluation.fitting.draws import grouped_by_row, pooled, row_name
from evaluation.fitting.finetuning.tasks import FinetunedLabel
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe
from evaluation.fitting.threshold import threshold_of
from evaluation.results.classifier import recalibrate
from evaluation.results.datasets import TaskKey
from evaluation.results.rows import Comparison, Draw, FewLabels, ProbeResult
from evaluation.results.scores import Calibration, Estimate, Gap, Subgroup
from evaluation.scoring.c_path import c_path
from evaluation.scoring.calibration import calibration, platt
from evaluation.scoring.delong import applies, delong_difference
from evaluation.scoring.multiplicity import holm
from evaluation.scoring.recipes import recipe_difference
from evaluation.scoring.scores import (
    Predictions,
    auc,
    auc_estimate,
    resampled_aucs,
    score,
)
from evaluation.scoring.subgroups import people_groups, subgroups
from infra.arrays import Float64, Int64

NEIGHBORS: Final = 20
_HALF: Final = 0.5
_OF_OTHER_CLASSES: Final = ("shuffled", "shuffled_over_all", "source")  # controls whose classes are not the task's


def thresholds(case: ProbeCase, probes: Sequence[FittedProbe]) -> list[float]:
    """Return the threshold of each round: 0.5, or Youden's from the out-of-fold probabilities."""
    return [
        threshold_of(case.preset, classes[fold >= 0], probe.validation)
        for classes, fold, probe in zip(case.classes, case.folds, probes, strict=True)
    ]


def predict(case: ProbeCase, probes: Sequence[FittedProbe]) -> Predictions:
    """Return the predictions for the test images, round after round."""
    decisions = [
        probe.probabilities > threshold for probe, threshold in zip(probes, thresholds(case, probes), strict=True)
    ]
    return Predictions(
        classes=_of_test(case, case.classes),
        probabilities=np.concatenate([probe.probabilities for probe in probes]),
        decisions=np.concatenate(decisions),
        patients=_of_test(case, np.tile(case.patients, (len(probes), 1))),
        parts=_of_test(case, np.repeat(np.arange(len(probes))[:, None], len(case.patients), axis=1)),
    )


def tested_rows(case: ProbeCase) -> Int64:
    """Return the rows (m,) of the test images in the matrix, round after round."""
    return _of_test(case, np.tile(case.rows, (len(case.folds), 1)))


def _of_test(case: ProbeCase, values: Int64) -> Int64:
    """Return the values (rounds, n) of the test parts, round after round."""
    return values[case.folds == -1]


def probe_result(row: Sequence[ProbeCase], fitted: FittedCases, *, resamples: int, seed: int) -> ProbeResult:
    """Score the case of a row, or all draws of it; with a strict preset, also its calibration and subgroups.

    Args:
        row: the case, or one case for each draw of the untrained backbone
        fitted: the fitted probes of each case, one for each round
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    case, probes = pooled(row), [probe for of_row in row for probe in fitted[of_row]]
    detailed = case.preset.chooses_threshold and case.kind not in _OF_OTHER_CLASSES
    predictions = predict(case, probes)
    groups, gaps = _subgroups(case, predictions, resamples, seed) if detailed else ([], [])
    return ProbeResult(
        dataset=case.key.dataset,
        preset=case.key.preset,
        features=case.name,
        kind=case.kind,
        epoch=case.epoch,
        step=case.step,
        size=case.matrix.values.shape[1],
        c=[probe.c for probe in probes],
        at_edge=sum(probe.at_edge for probe in probes),
        threshold=thresholds(case, probes),
        validation_auc=float(np.mean([probe.validation_auc for probe in probes])),
        scores=score(predictions, resamples=resamples, seed=seed),
        knn_auc=float(np.mean([neighbors_auc(of_row) for of_row in row])),
        fits=sum(probe.fits for probe in probes),
        unconverged=sum(probe.unconverged for probe in probes),
        calibration=_calibration(case, probes, predictions) if detailed else None,
        subgroups=groups,
        gaps=gaps,
        c_path=c_path(probes),
        validation=_validation(case, probes, resamples, seed),
        draws=[_draw(of_row.seed, of_row, fitted[of_row]) for of_row in row if of_row.seed is not None],
    )


def _draw(seed: int, case: ProbeCase, probes: Sequence[FittedProbe]) -> Draw:
    return Draw(
        seed=seed,
        c=[probe.c for probe in probes],
        validation_auc=float(np.mean([probe.validation_auc for probe in probes])),
        scores=score(predict(case, probes), resamples=0, seed=0),
    )


def _validation(case: ProbeCase, probes: Sequence[FittedProbe], resamples: int, seed: int) -> Estimate:
    """Return the mean validation AUC with its interval, from the out-of-fold probabilities of all rounds.

    The images of a fold have one classifier in each round, so that each fold of each round is a part of its own.
    """
    developing = case.folds >= 0
    rounds = np.arange(len(probes))[:, None]
    parts = case.folds + rounds * (case.folds.max() + 1)
    out_of_fold = np.concatenate([probe.validation for probe in probes])
    patients = np.tile(case.patients, (len(probes), 1))
    predictions = Predictions(
        case.classes[developing], out_of_fold, out_of_fold > _HALF, patients[developing], parts[developing]
    )
    resampled = resampled_aucs(predictions, resamples=resamples, seed=seed)
    return auc_estimate(predictions, resampled, float(np.mean([probe.validation_auc for probe in probes])))


def _subgroups(
    case: ProbeCase, predictions: Predictions, resamples: int, seed: int
) -> tuple[list[Subgroup], list[Gap]]:
    """Score the groups of each attribute that varies over the test part."""
    samples = case.task.labeled_set.samples
    tested = tested_rows(case)
    return subgroups(
        predictions,
        people_groups(samples, tested),
        identities=samples.patient_ids[tested],
        resamples=resamples,
        seed=seed,
    )


def _calibration(case: ProbeCase, probes: Sequence[FittedProbe], predictions: Predictions) -> Calibration:
    """Recalibrate each round by its own out-of-fold probabilities, then pool the test parts."""
    parts = [
        recalibrate(probe.probabilities, *platt(classes[fold >= 0], probe.validation))
        for classes, fold, probe in zip(case.classes, case.folds, probes, strict=True)
    ]
    return calibration(predictions.classes, predictions.probabilities, np.concatenate(parts))


def neighbors_auc(case: ProbeCase) -> float:
    """Return the mean AUC over the rounds of the nearest neighbors by cosine, without training or a choice.

    The score of a test image is the share of positives among its 20 nearest development images, each weighted by the
    inverse of its distance.
    """
    values = case.matrix.values
    aucs = []
    for classes, fold in zip(case.classes, case.folds, strict=True):
        development, test = fold >= 0, fold == -1
        model = KNeighborsClassifier(min(NEIGHBORS, int(development.sum())), weights="distance", metric="cosine")
        model.fit(values[case.rows[development]], classes[development])
        probabilities: Float64 = model.predict_proba(values[case.rows[test]])[:, 1]
        aucs.append(roc_auc_score(classes[test], probabilities))
    return float(np.mean(aucs))


def predict_finetuned(case: ProbeCase, label: FinetunedLabel) -> Predictions:
    """Return what a network that was fine-tuned on a case's only round predicts for the test images."""
    return _predictions(case, label.test_rows, label.test, label.threshold)


def _predictions(case: ProbeCase, rows: Int64, probabilities: Float64, threshold: float) -> Predictions:
    """Return predictions (m,) for these images (m,) of a case's only round."""
    return Predictions(
        case.classes[0][rows],
        probabilities,
        probabilities > threshold,
        case.patients[rows],
        np.zeros(len(probabilities), np.int64),
    )


def finetuned_result(case: ProbeCase, label: FinetunedLabel, *, resamples: int, seed: int) -> ProbeResult:
    """Score a network that was fine-tuned on a case's only round; its threshold is chosen like a probe's."""
    validation = _predictions(case, label.validation_rows, label.validation, label.threshold)
    return ProbeResult(
        dataset=case.key.dataset,
        preset=case.key.preset,
        features=finetuned_name(case),
        kind="finetuned",
        epoch=case.epoch,
        step=case.step,
        size=case.matrix.values.shape[1],
        c=[],
        at_edge=0,
        threshold=[label.threshold],
        validation_auc=auc(validation),
        scores=score(predict_finetuned(case, label), resamples=resamples, seed=seed),
        knn_auc=None,
        fits=0,
        unconverged=0,
        validation=auc_estimate(validation, resampled_aucs(validation, resamples=resamples, seed=seed)),
    )


def finetuned_name(case: ProbeCase) -> str:
    """Return the name of the row of the network that was fine-tuned from the backbone of a case."""
    return f"{case.name}, fine-tuned"


def compare_with_last(
    cases: Sequence[ProbeCase],
    fitted: FittedCases,
    finetuned: Mapping[ProbeCase, FinetunedLabel],
    *,
    resamples: int,
    seed: int,
) -> list[Comparison]:
    """Compare the last checkpoint of each task with all other features on the same classes and test images.

    The networks that were fine-tuned from it come last.

    Against the untrained backbone, the interval is over patients and over the draws of its weights. The p-values are
    adjusted for all comparisons of a task, because readers look at these together.
    """
    comparisons = []
    for row in grouped_by_row(cases):
        other, last = row[0], last_case(cases, row[0])
        if last is None or other is last or other.kind in _OF_OTHER_CLASSES:
            continue
        ours, theirs = predict(last, fitted[last]), [predict(draw, fitted[draw]) for draw in row]
        comparisons.append(_compare(last, ours, row_name(other), theirs, resamples, seed))
    for last, label in finetuned.items():
        ours, theirs = predict(last, fitted[last]), [predict_finetuned(last, label)]
        comparisons.append(_compare(last, ours, finetuned_name(last), theirs, resamples, seed))
    return adjusted(comparisons)


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with Holm's p-values, for each dataset and preset as one family."""
    families: dict[TaskKey, list[float]] = {}
    for item in comparisons:
        if item.difference.p is not None:
            families.setdefault(item.key, []).append(item.difference.p)
    p_values = {key: iter(holm(family)) for key, family in families.items()}
    return [
        item if item.difference.p is None else replace(item, p_holm=next(p_values[item.key])) for item in comparisons
    ]


def _compare(
    last: ProbeCase, ours: Predictions, name: str, theirs: Sequence[Predictions], resamples: int, seed: int
) -> Comparison:
    """Compare the last checkpoint with other features, of which there may be several draws."""
    return Comparison(
        *last.key,
        last.name,
        name,
        recipe_difference([ours], theirs, resamples=resamples, seed=seed),
        delong=delong_difference(ours, *theirs) if resamples and applies(ours) and len(theirs) == 1 else None,
    )


def few_labels_result(few: FewLabelsCase, fitted: FittedCases) -> FewLabels:
    """Return the test AUC of each draw of the labels."""
    aucs = [
        float(roc_auc_score(classes[fold == -1], probe.probabilities))
        for case in few.cases
        for classes, fold, probe in zip(case.classes, case.folds, fitted[case], strict=True)
    ]
    images = float(np.mean([(fold >= 0).sum() for case in few.cases for fold in case.folds]))
    return FewLabels(*few.row[0].key, row_name(few.row[0]), few.percent, images, aucs)
