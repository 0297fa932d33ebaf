"""Rows of the results from fitted probes: scores with intervals, neighbors, calibration, subgroups, comparisons."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation.fitting.case_list import FewLabelsCase, last_case
from evaluation.fitting.finetune import FinetunedNetwork
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe
from evaluation.results.results import Comparison, FewLabels, ProbeResult, TaskKey
from evaluation.results.scores import Calibration, Estimate, Gap, Subgroup
from evaluation.scoring.calibration import calibration, platt, recalibrate
from evaluation.scoring.delong import applies, delong_difference
from evaluation.scoring.multiplicity import holm
from evaluation.scoring.scores import (
    Predictions,
    auc_difference,
    auc_estimate,
    resampled_aucs,
    score,
    youden_threshold,
)
from evaluation.scoring.subgroups import age_group, subgroups
from infra.arrays import Float64, Int64

NEIGHBORS: Final = 20
_HALF: Final = 0.5


def thresholds(case: ProbeCase, probes: Sequence[FittedProbe]) -> list[float]:
    """Return the threshold of each round: 0.5, or Youden's from the out-of-fold probabilities."""
    if not case.preset.chooses_threshold:
        return [_HALF] * len(probes)
    return [
        youden_threshold(classes[fold >= 0], probe.validation)
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


def _of_test(case: ProbeCase, values: Int64) -> Int64:
    """Return the values (rounds, n) of the test parts, round after round."""
    return values[case.folds == -1]


def probe_result(case: ProbeCase, probes: Sequence[FittedProbe], *, resamples: int, seed: int) -> ProbeResult:
    """Score a case; with a strict preset, also its calibration and subgroups.

    Args:
        case: the case
        probes: its fitted probes, one for each round
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    detailed = case.preset.chooses_threshold and case.kind not in ("shuffled", "source")
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
        knn_auc=neighbors_auc(case),
        fits=sum(probe.fits for probe in probes),
        unconverged=sum(probe.unconverged for probe in probes),
        calibration=_calibration(case, probes, predictions) if detailed else None,
        subgroups=groups,
        gaps=gaps,
        validation=_validation(case, probes, resamples, seed),
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
    rows = _of_test(case, np.tile(case.rows, (len(case.folds), 1))).tolist()
    attributes = {
        "sex": [samples.sexes[row] for row in rows],
        "age": [age_group(samples.ages[row]) for row in rows],
        "view": [samples.views[row] for row in rows],
    }
    varying = {name: groups for name, groups in attributes.items() if len(set(groups)) > 1}
    return subgroups(predictions, varying, resamples=resamples, seed=seed)


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


def finetuned_result(case: ProbeCase, network: FinetunedNetwork, *, resamples: int, seed: int) -> ProbeResult:
    """Score a network that was fine-tuned on a case's only round; its threshold is chosen like a probe's."""
    classes, test = case.classes[0], case.folds[0] == -1
    threshold = (
        youden_threshold(classes[network.validation_rows], network.validation)
        if case.preset.chooses_threshold
        else _HALF
    )
    predictions = Predictions(
        classes[test],
        network.probabilities,
        network.probabilities > threshold,
        case.patients[test],
        np.zeros(int(test.sum()), np.int64),
    )
    validation = Predictions(
        classes[network.validation_rows],
        network.validation,
        network.validation > threshold,
        case.patients[network.validation_rows],
        np.zeros(len(network.validation), np.int64),
    )
    return ProbeResult(
        dataset=case.key.dataset,
        preset=case.key.preset,
        features=f"{case.name}, fine-tuned",
        kind="finetuned",
        epoch=case.epoch,
        step=case.step,
        size=case.matrix.values.shape[1],
        c=[],
        at_edge=0,
        threshold=[threshold],
        validation_auc=network.validation_auc,
        scores=score(predictions, resamples=resamples, seed=seed),
        knn_auc=None,
        fits=0,
        unconverged=0,
        validation=auc_estimate(validation, resampled_aucs(validation, resamples=resamples, seed=seed)),
    )


def compare_with_last(
    cases: Sequence[ProbeCase], fitted: FittedCases, *, resamples: int, seed: int
) -> list[Comparison]:
    """Compare the last checkpoint of each task with all other features on the same classes and test images.

    The p-values are adjusted for all comparisons of a task, because readers look at these together.
    """
    comparisons = []
    for other in cases:
        last = last_case(cases, other)
        if last is None or other is last or other.kind in ("shuffled", "source"):
            continue
        first, second = predict(last, fitted[last]), predict(other, fitted[other])
        comparisons.append(
            Comparison(
                other.key.dataset,
                other.key.preset,
                last.name,
                other.name,
                auc_difference(first, second, resamples=resamples, seed=seed),
                delong=delong_difference(first, second) if resamples and applies(first) else None,
            )
        )
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


def few_labels_result(few: FewLabelsCase, probes: Sequence[FittedProbe]) -> FewLabels:
    """Return the test AUC of each draw of the labels."""
    case = few.case
    aucs = [
        float(roc_auc_score(classes[fold == -1], probe.probabilities))
        for classes, fold, probe in zip(case.classes, case.folds, probes, strict=True)
    ]
    images = float(np.mean([(fold >= 0).sum() for fold in case.folds]))
    return FewLabels(case.key.dataset, case.key.preset, few.whole.name, few.percent, images, aucs)
