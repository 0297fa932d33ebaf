from dataclasses import replace
from typing import Final

import numpy as np
import pytest

from evaluation.data.division import divide
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe, search_serially
from evaluation.results.presets import PRESETS
from evaluation.results.rows import Comparison, ProbeKind
from evaluation.results.scores import Difference
from evaluation.scoring.multiplicity import holm
from evaluation.scoring.probe_results import adjusted, compare_with_last, probe_result
from tests.support.probe_cases import made_task

SOURCES: Final[list[tuple[str, ProbeKind, int | None]]] = [
    ("pixels", "pixels", None),
    ("epoch 1", "checkpoint", 5),
    ("epoch 2", "checkpoint", 10),
]
Fitted = dict[ProbeCase, list[FittedProbe]]


def _fitted(rounds: int = 1, images: int = 1) -> Fitted:
    """Two checkpoints and raw pixels on 120 patients, fitted; in each round another fifth is tested."""
    random = np.random.default_rng(0)
    patients = np.arange(120 * images) // images
    classes = patients % 2
    rows = np.arange(len(patients))
    folds = []
    for number in range(rounds):
        fold = np.where(divide(classes, patients, 5, 0, "test") == number, -1, 0)
        fold[fold == 0] = divide(classes[fold == 0], patients[fold == 0], 3, 0, "inner")
        folds.append(fold)
    task = made_task(replace(PRESETS["gazda2021"], c_grid=(0.1, 1.0)))
    fitted: Fitted = {}
    for name, kind, step in SOURCES:
        values = (random.normal(size=(len(patients), 4)) + 0.8 * classes[:, None]).astype(np.float32)
        case = ProbeCase(
            task, name, kind, None, step, FeatureMatrix(name, values), rows, patients,
            np.tile(classes, (rounds, 1)), np.stack(folds), False,
        )  # fmt: skip
        problems = {item.name: item.problem for item in case.rounds()}
        fitted[case] = list(search_serially({name: values}, problems).values())
    return fitted


def test_delong_stands_beside_the_bootstrap_only_where_each_patient_has_one_test_image() -> None:
    for rounds, images, applies in ((1, 1, True), (1, 2, False), (5, 1, False)):
        fitted = _fitted(rounds, images)
        comparisons = compare_with_last(list(fitted), fitted, {}, resamples=200, seed=0)
        assert [(item.features, item.other) for item in comparisons] == [("epoch 2", "pixels"), ("epoch 2", "epoch 1")]
        for item in comparisons:
            assert (item.delong is not None) == applies
            assert item.delong is None or item.delong.value == pytest.approx(item.difference.value)
        assert [item.p_holm for item in comparisons] == holm([item.difference.p or 0.0 for item in comparisons])
        without = compare_with_last(list(fitted), fitted, {}, resamples=0, seed=0)
        assert {(item.p_holm, item.delong, item.difference.low) for item in without} == {(None, None, None)}


@pytest.mark.parametrize("rounds", [1, 5])
def test_validation_auc_has_an_interval_from_the_predictions_of_each_fold(rounds: int) -> None:
    fitted = _fitted(rounds)
    [*_, (case, probes)] = fitted.items()
    row = probe_result([case], fitted, resamples=200, seed=0)
    assert row.validation is not None and row.validation.low is not None and row.validation.high is not None
    assert row.validation.value == row.validation_auc
    assert row.validation_auc == pytest.approx(np.mean([item.validation_auc for item in probes]))
    assert row.validation.low < row.validation.value < row.validation.high
    patients = 60 if rounds > 1 else 48  # of the smaller class, in the development parts
    assert row.validation.method == f"logit-t, {patients} patients, cross-validated"


def test_each_dataset_and_preset_is_a_family_of_its_own() -> None:
    p_values = {("a", "rigorous"): [0.01, 0.03], ("a", "gazda2021"): [0.04], ("b", "rigorous"): [0.02, 0.02, 0.5]}
    made = [
        Comparison(dataset, preset, "last", f"other {number}", Difference(0.1, p=p))
        for (dataset, preset), family in p_values.items()
        for number, p in enumerate(family)
    ]
    made.insert(1, Comparison("a", "rigorous", "last", "without resamples", Difference(0.1)))
    mixed = [made[position] for position in np.random.default_rng(0).permutation(len(made))]
    for item in adjusted(mixed):
        family = p_values[item.dataset, item.preset]
        expected = None if item.difference.p is None else holm(family)[family.index(item.difference.p)]
        assert item.p_holm == expected
    assert adjusted(adjusted(mixed)) == adjusted(mixed)
