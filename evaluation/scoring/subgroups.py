"""What a probe is worth for women and men, young and old, one view and another."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from evaluation.results.results import Gap, Scores, Subgroup
from evaluation.scoring.scores import (
    Bools,
    Figures,
    Predictions,
    auc,
    estimate_difference,
    figures,
    image_weights,
    summarize,
)

UNKNOWN: Final = "unknown"
_AGES: Final = {"under 18": 0.0, "18-39": 18.0, "40-59": 40.0, "60-79": 60.0, "80 and over": 80.0}  # from, in years
_LEAST_OF_CLASS: Final = 10


def subgroups(
    tested: Predictions,
    attributes: Mapping[str, Sequence[str | None]],
    *,
    smallest: int = 50,
    resamples: int,
    seed: int,
) -> tuple[list[Subgroup], list[Gap]]:
    """Score every group of every attribute, and name the widest gap of each attribute.

    attributes: "sex", "age", "view" -> the group of each of the m test images; None is the group "unknown", which is
    listed but takes no part in gaps. A group is scored when it has `smallest` images, 10 of each class among them. An
    attribute has a gap when two of its groups are scored. Patients are drawn from all of the test part, so that the
    groups are resampled jointly.
    """
    groups = _groups(attributes)
    scored = {key: inside for key, inside in groups.items() if _is_scorable(tested.of(inside), smallest)}
    resampled: dict[_Key, list[Figures]] = {key: [] for key in scored}
    for weights in image_weights(tested.patients, resamples=resamples, seed=seed):
        for key, inside in scored.items():
            resampled[key].append(figures(tested.of(inside), weights[:, inside]))
    scores = {key: summarize(tested.of(inside), resampled[key]) for key, inside in scored.items()}
    listed = [_subgroup(key, tested.of(inside), scores.get(key)) for key, inside in groups.items()]
    return listed, [gap for attribute in attributes if (gap := _gap(attribute, scores, resampled))]


def age_group(age: float | None) -> str | None:
    """Return the group of an age in years: under 18, 18-39, 40-59, 60-79, 80 and over; None where it is unknown."""
    reached = [group for group, youngest in _AGES.items() if age is not None and age >= youngest]
    return reached[-1] if reached else None


_Key = tuple[str, str]  # attribute, group


def _groups(attributes: Mapping[str, Sequence[str | None]]) -> dict[_Key, Bools]:
    """(m,) the images of every group, the groups of an attribute by name, ages ascending, unknown last."""
    places = {name: place for place, name in enumerate(_AGES)} | {UNKNOWN: len(_AGES)}
    groups = {}
    for attribute, values in attributes.items():
        named = np.array([UNKNOWN if value is None else value for value in values])
        for group in sorted(set(named.tolist()), key=lambda name: (places.get(name, 0), name)):
            groups[attribute, group] = named == group
    return groups


def _is_scorable(tested: Predictions, smallest: int) -> bool:
    positive = int(tested.classes.sum())
    negative = len(tested.classes) - positive
    enough = positive + negative >= smallest and min(positive, negative) >= _LEAST_OF_CLASS
    return enough and not np.isnan(auc(tested))


def _subgroup(key: _Key, tested: Predictions, scores: Scores | None) -> Subgroup:
    return Subgroup(
        *key,
        images=len(tested.classes),
        patients=len(np.unique(tested.patients)),
        positive=int(tested.classes.sum()),
        auc=scores.auc if scores else None,
        sen=scores.sen if scores else None,
        spe=scores.spe if scores else None,
    )


def _gap(attribute: str, scores: Mapping[_Key, Scores], resampled: Mapping[_Key, Sequence[Figures]]) -> Gap | None:
    known = [key for key in scores if key[0] == attribute and key[1] != UNKNOWN]
    if len(known) < 2:
        return None
    lowest, *_, highest = sorted(known, key=lambda key: scores[key].auc.value)
    differences = [high["auc"] - low["auc"] for high, low in zip(resampled[highest], resampled[lowest], strict=True)]
    difference = scores[highest].auc.value - scores[lowest].auc.value
    return Gap(
        attribute, highest[1], lowest[1], estimate_difference(difference, np.concatenate([np.empty(0), *differences]))
    )
