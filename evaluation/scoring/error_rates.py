"""False-positive and false-negative rates of groups of test images, with intervals over patients."""

import numpy as np

from evaluation.results.fault_records import GroupErrors
from evaluation.results.scores import Estimate
from evaluation.scoring.intervals import Evidence, estimate, exact
from evaluation.scoring.scores import Predictions, image_weights, score_evidence
from evaluation.scoring.subgroups import Attributes, images_by_group
from infra.arrays import Bool, Float64, UInt64


def error_rates(
    predictions: Predictions, attributes: Attributes, *, identities: UInt64, resamples: int, seed: int
) -> list[GroupErrors]:
    """Count the errors on all test images and on each group of them.

    Patients are drawn as for the scores, so that the rates of all images are one minus specificity and sensitivity.

    Args:
        predictions: predictions for the m test images
        attributes: the groups of the images
        identities: (m,) the patients to count; those of the predictions may be groups of patients
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    count = len(predictions.classes)
    groups = images_by_group({"": ["all"] * count} | dict(attributes))
    wrong = predictions.decisions != (predictions.classes == 1)
    masks = [
        inside & of_class & chosen
        for inside in groups.values()
        for of_class in (predictions.classes == 0, predictions.classes == 1)
        for chosen in (wrong, np.ones(count, np.bool_))
    ]
    resampled = _resampled_sums(predictions, masks, resamples, seed).reshape(-1, len(groups), 2, 2)
    listed = []
    for number, ((attribute, group), inside) in enumerate(groups.items()):
        of_group = predictions.of(inside)
        evidence = score_evidence(of_group)
        negatives, positives = (of_group.classes == code for code in (0, 1))
        errors = wrong[inside]
        listed.append(
            GroupErrors(
                attribute,
                group,
                images=len(errors),
                patients=len(np.unique(identities[inside])),
                positives=int(positives.sum()),
                false_positives=int((errors & negatives).sum()),
                false_negatives=int((errors & positives).sum()),
                false_positive_rate=_rate(errors[negatives], resampled[:, number, 0], evidence["spe"]),
                false_negative_rate=_rate(errors[positives], resampled[:, number, 1], evidence["sen"]),
            )
        )
    return listed


def _resampled_sums(predictions: Predictions, masks: list[Bool], resamples: int, seed: int) -> Float64:
    """Return (B, K) how many images each of K masks (m,) holds in each resample of the patients."""
    codes, patient = np.unique(predictions.patients, return_inverse=True)
    of_patients = np.stack(
        [np.bincount(patient[mask], minlength=len(codes)) for mask in masks], axis=1, dtype=np.float64
    )
    draws = image_weights(np.arange(len(codes)), resamples=resamples, seed=seed)
    return np.concatenate([np.empty((0, len(masks))), *(weights @ of_patients for weights in draws)])


def _rate(errors: Bool, resampled: Float64, evidence: Evidence) -> Estimate | None:
    """Return the share of errors among images (n,); `resampled` (B, 2) holds errors and images of each resample."""
    if not len(errors):
        return None
    share = float(errors.mean())
    if not len(resampled):
        return Estimate(share)
    if share in (0, 1):
        return exact(share, evidence)
    wrong, tested = resampled.T
    shares = np.divide(wrong, tested, out=np.full(len(tested), np.nan), where=tested > 0)
    return estimate(share, shares, evidence)
