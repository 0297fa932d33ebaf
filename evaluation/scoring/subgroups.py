"""Groups of test images by sex, age, view and size, and the scores of a probe in such groups."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from evaluation.data.samples import Samples
from evaluation.results.scores import Gap, Scores, Subgroup
from evaluation.scoring.intervals import Evidence, estimate_difference
from evaluation.scoring.scores import (
    Predictions,
    ResampledScores,
    auc,
    auc_evidence,
    image_weights,
    summarize,
    weighted_scores,
)
from infra.arrays import Bool, Int64, UInt64

UNKNOWN: Final = "unknown"
_AGES: Final = {"under 18": 0.0, "18-39": 18.0, "40-59": 40.0, "60-79": 60.0, "80 and over": 80.0}  # youngest, in years
_SIZES: Final = {
    "under 256 px": 1,
    "256-511 px": 256,
    "512-1023 px": 512,
    "1024-2047 px": 1024,
    "2048 px and over": 2048,
}
_LEAST_OF_CLASS: Final = 10

Attributes = Mapping[str, Sequence[str | None]]  # attribute -> the group of each image, None if it is unknown
GroupKey = tuple[str, str]  # attribute, group


def people_groups(samples: Samples, rows: Int64) -> Attributes:
    """Return the groups by sex, age and view of the images in some rows (m,), without attributes that do not vary."""
    chosen = rows.tolist()
    attributes = {
        "sex": [samples.sexes[row] for row in chosen],
        "age": [age_group(samples.ages[row]) for row in chosen],
        "view": [samples.views[row] for row in chosen],
    }
    return {name: groups for name, groups in attributes.items() if len(set(groups)) > 1}


def size_groups(samples: Samples, rows: Int64) -> Attributes:
    """Return the groups by the size of the sources of the images in some rows (m,); nothing if it does not vary."""
    groups = [size_group(pixels) for pixels in samples.source_sizes[rows].min(axis=1).tolist()]
    return {"shorter side": groups} if len(set(groups)) > 1 else {}


def subgroups(
    predictions: Predictions,
    attributes: Attributes,
    *,
    identities: UInt64 | None = None,
    smallest: int = 50,
    resamples: int,
    seed: int,
) -> tuple[list[Subgroup], list[Gap]]:
    """Score each group of each attribute, and find the widest gap of each attribute.

    Patients are drawn from the whole test part, so that the groups are resampled jointly.

    Args:
        predictions: predictions for the m test images
        attributes: "sex", "age" or "view" -> the group of each image; None is the group "unknown", which is listed but
            never part of a gap
        identities: (m,) the patients to count; by default those of the predictions, which may be groups of patients
        smallest: images that a group needs to be scored; it also needs 10 images of each class
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples

    Returns:
        The groups, and a gap for each attribute with at least two scored groups.
    """
    groups = images_by_group(attributes)
    scored = {key: inside for key, inside in groups.items() if _is_scorable(predictions.of(inside), smallest)}
    resampled: dict[GroupKey, list[ResampledScores]] = {key: [] for key in scored}
    for weights in image_weights(predictions.patients, resamples=resamples, seed=seed):
        for key, inside in scored.items():
            resampled[key].append(weighted_scores(predictions.of(inside), weights[:, inside]))
    scores = {key: summarize(predictions.of(inside), resampled[key]) for key, inside in scored.items()}
    people = predictions.patients if identities is None else identities
    listed = [
        _subgroup(key, predictions.of(inside), len(np.unique(people[inside])), scores.get(key))
        for key, inside in groups.items()
    ]
    evidence = {key: auc_evidence(predictions.of(inside)) for key, inside in scored.items()}
    return listed, [gap for attribute in attributes if (gap := _gap(attribute, scores, resampled, evidence))]


def age_group(age: float | None) -> str | None:
    """Return the group of an age in years: under 18, 18-39, 40-59, 60-79, 80 and over; None if the age is unknown."""
    reached = [group for group, youngest in _AGES.items() if age is not None and age >= youngest]
    return reached[-1] if reached else None


def size_group(pixels: int) -> str | None:
    """Return the group of a shorter side in pixels, in octaves from 256 to 2048; None if it is unknown (0)."""
    reached = [group for group, least in _SIZES.items() if pixels >= least]
    return reached[-1] if reached else None


def images_by_group(attributes: Attributes) -> dict[GroupKey, Bool]:
    """Return (m,) the images of each group: groups by name, ages and sizes ascending, unknown last."""
    order = {name: position for position, name in enumerate([*_AGES, *_SIZES, UNKNOWN])}
    groups = {}
    for attribute, values in attributes.items():
        named = np.array([UNKNOWN if value is None else value for value in values])
        for group in sorted(set(named.tolist()), key=lambda name: (order.get(name, 0), name)):
            groups[attribute, group] = named == group
    return groups


def _is_scorable(predictions: Predictions, smallest: int) -> bool:
    positive = int(predictions.classes.sum())
    negative = len(predictions.classes) - positive
    enough = positive + negative >= smallest and min(positive, negative) >= _LEAST_OF_CLASS
    return enough and not np.isnan(auc(predictions))


def _subgroup(key: GroupKey, predictions: Predictions, patients: int, scores: Scores | None) -> Subgroup:
    return Subgroup(
        *key,
        images=len(predictions.classes),
        patients=patients,
        positive=int(predictions.classes.sum()),
        auc=scores.auc if scores else None,
        sen=scores.sen if scores else None,
        spe=scores.spe if scores else None,
    )


def _gap(
    attribute: str,
    scores: Mapping[GroupKey, Scores],
    resampled: Mapping[GroupKey, Sequence[ResampledScores]],
    evidence: Mapping[GroupKey, Evidence],
) -> Gap | None:
    known = [key for key in scores if key[0] == attribute and key[1] != UNKNOWN]
    if len(known) < 2:
        return None
    lowest, *_, highest = sorted(known, key=lambda key: scores[key].auc.value)
    differences = [high["auc"] - low["auc"] for high, low in zip(resampled[highest], resampled[lowest], strict=True)]
    fewest = min(evidence[highest], evidence[lowest], key=lambda item: item.patients)
    gap = estimate_difference(
        scores[highest].auc, scores[lowest].auc, np.concatenate([np.empty(0), *differences]), fewest
    )
    # No p-value: the pair was chosen because it is the most extreme.
    return Gap(attribute, highest[1], lowest[1], replace(gap, p=None))
