"""AUCs of recipes, each applied with several seeds: intervals and differences over both seeds and patients.

An interval over patients alone holds the weights fixed: it speaks of these weights. A recipe, such as a way to
pretrain, gives other weights with every seed, so a statement about the recipe needs the spread over seeds too. This is
the design of a study in which several readers read the same cases: a seed is a reader, a patient a case.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from evaluation.results.scores import Difference, Estimate
from evaluation.scoring.scores import (
    Predictions,
    auc,
    auc_difference,
    auc_estimate,
    auc_evidence,
    image_weights,
    resampled_aucs,
    weighted_aucs,
)
from infra.arrays import Float64, Int64

_LEVEL: Final = 0.975  # of Student's t, for two-sided intervals of 95 %


class _Spread(NamedTuple):
    """The standard error of a mean AUC or of a difference of two, and its degrees of freedom."""

    error: float
    freedom: float


def recipe_auc(runs: Sequence[Predictions], *, resamples: int, seed: int) -> Estimate:
    """Return the mean AUC of a recipe over its seeds; its interval is as in `recipe_difference`, on the logit scale.

    Args:
        runs: the predictions of the recipe with each seed, on the same images
        resamples: bootstrap resamples of the patients; 0 for no interval
        seed: seed of the resamples
    """
    if len(runs) == 1:
        return auc_estimate(runs[0], resampled_aucs(runs[0], resamples=resamples, seed=seed))
    mean = _mean_auc(runs)
    spread = _spread([runs], resamples=resamples, seed=seed)
    if spread is None or not 0 < mean < 1:
        return Estimate(mean)
    width = stdtrit(spread.freedom, _LEVEL) * spread.error / (mean * (1 - mean))
    low, high = float(expit(logit(mean) - width)), float(expit(logit(mean) + width))
    return Estimate(mean, low, high, _describe(spread, [runs]))


def recipe_difference(
    first: Sequence[Predictions], second: Sequence[Predictions], *, resamples: int, seed: int
) -> Difference:
    """Return the mean AUC of one recipe minus that of another on the same images.

    The variance is the sum of two parts, as of readers who differ between two modalities (Obuchowski & Rockette 1995,
    "Hypothesis testing of diagnostic accuracy for multiple readers and multiple tests"):

    - of the seeds: in each recipe of several, the variance of the AUCs over the seeds, divided by their number;
    - of the patients: the covariances of the AUCs under the same resampled patients, between different runs. A run's
      own variance would count a second time what the variance over the seeds contains.

    Where a recipe has one seed, the weights are taken as they are, and the result speaks of these weights only.
    Student's t has the degrees of freedom of Satterthwaite 1946, "An approximate distribution of estimates of variance
    components": few seeds say little about their spread, which makes the interval wider.

    Args:
        first: the predictions of one recipe with each of its seeds
        second: those of the other recipe
        resamples: bootstrap resamples of the patients; 0 for no interval
        seed: seed of the resamples
    """
    for run in (*first, *second):
        for name in ("classes", "patients", "parts"):
            assert np.array_equal(getattr(first[0], name), getattr(run, name)), f"two runs to compare differ in {name}"
    if len(first) == len(second) == 1:
        return auc_difference(first[0], second[0], resamples=resamples, seed=seed)
    value = _mean_auc(first) - _mean_auc(second)
    spread = _spread([first, second], resamples=resamples, seed=seed)
    if spread is None:
        return Difference(value)
    width = float(stdtrit(spread.freedom, _LEVEL) * spread.error)
    p_value = float(2 * stdtr(spread.freedom, -abs(value) / spread.error)) if spread.error else float(value == 0)
    return Difference(value, value - width, value + width, _describe(spread, [first, second]), p_value)


def _describe(spread: _Spread, recipes: Sequence[Sequence[Predictions]]) -> str:
    """Return the method of an interval, as it is stored."""
    seeds = " and ".join(str(len(runs)) for runs in recipes)
    patients = auc_evidence(recipes[0][0]).patients
    return f"t over seeds and patients, {seeds} seeds, {patients} patients, {spread.freedom:.1f} degrees of freedom"


def _mean_auc(runs: Sequence[Predictions]) -> float:
    return float(np.mean([auc(run) for run in runs]))


def _spread(recipes: Sequence[Sequence[Predictions]], *, resamples: int, seed: int) -> _Spread | None:
    """Return the spread of the mean AUC of one recipe, or of the first minus the second; None without resamples."""
    runs = [run for recipe in recipes for run in recipe]
    resampled = _resampled_together(runs, resamples=resamples, seed=seed)
    if resampled.shape[1] < 2:
        return None
    owners = np.repeat(np.arange(len(recipes)), [len(recipe) for recipe in recipes])
    # (variance, degrees of freedom) of each part
    evidence = auc_evidence(runs[0])
    of_patients = _of_patients(np.atleast_2d(np.cov(resampled)), owners) * evidence.variance_factor
    parts = [(of_patients, float(evidence.patients - 1))]
    for recipe in recipes:
        if len(recipe) > 1:
            between = float(np.var([auc(run) for run in recipe], ddof=1))
            parts.append((between / len(recipe), len(recipe) - 1.0))
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / max(1.0, of_part) for variance, of_part in parts) if total else 1.0
    return _Spread(total**0.5, freedom)


def _resampled_together(runs: Sequence[Predictions], *, resamples: int, seed: int) -> Float64:
    """Return the AUC of each run under the same resamples of the patients (runs, B), if these hold both classes."""
    chunks = [
        np.stack([weighted_aucs(run, weights) for run in runs])
        for weights in image_weights(runs[0].patients, resamples=resamples, seed=seed)
    ]
    aucs = np.concatenate([np.empty((len(runs), 0)), *chunks], axis=1)
    return aucs[:, ~np.isnan(aucs).any(axis=0)]


def _of_patients(covariance: Float64, owners: Int64) -> float:
    """Return the part of the variance that all seeds of a recipe share, because they are tested on the same patients.

    Args:
        covariance: (runs, runs) of the resampled AUCs
        owners: (runs,) the recipe of each run, 0 or 1
    """
    signs = {0: 1, 1: -1}
    variance = 0.0
    for one, first_sign in signs.items():
        for other, second_sign in signs.items():
            block = covariance[np.ix_(owners == one, owners == other)]
            if one == other and len(block) > 1:
                block = block[~np.eye(len(block), dtype=np.bool_)]
            variance += first_sign * second_sign * float(block.mean()) if block.size else 0.0
    return max(0.0, variance)
