"""Scores of a probe in subgroups by sex, age and view."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

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
from infra.arrays import Bool, UInt64

UNKNOWN: Final = "unknown"
_AGES: Final = {"under 18": 0.0, "18-39": 18.0, "40-59": 40.0, "60-79": 60.0, "80 and over": 80.0}  # youngest, in years
_LEAST_OF_CLASS: Final = 10


def subgroups(
    predictions: Predictions,
    attributes: Mapping[str, Sequence[str | None]],
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
    groups = _groups(attributes)
    scored = {key: inside for key, inside in groups.items() if _is_scorable(predictions.of(inside), smallest)}
    resampled: dict[_Key, list[ResampledScores]] = {key: [] for key in scored}
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


_Key = tuple[str, str]  # attribute, group


def _groups(attributes: Mapping[str, Sequence[str | None]]) -> dict[_Key, Bool]:
    """Return (m,) the images of each group: an attribute's groups by name, ages ascending, unknown last."""
    order = {name: position for position, name in enumerate(_AGES)} | {UNKNOWN: len(_AGES)}
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


def _subgroup(key: _Key, predictions: Predictions, patients: int, scores: Scores | None) -> Subgroup:
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
    scores: Mapping[_Key, Scores],
    resampled: Mapping[_Key, Sequence[ResampledScores]],
    evidence: Mapping[_Key, Evidence],
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
