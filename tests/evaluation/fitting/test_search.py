import statistics
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evaluation.fitting.logistic_regression import fit_classifier
from evaluation.fitting.search import SearchProblem, choose_c, search_serially
from infra.arrays import Float32

GRID = (0.01, 0.1, 1.0)
FOLDS = 3


def features(seed: int, count: int = 120, size: int = 24) -> Float32:
    """Return images of alternating classes that a few features barely distinguish."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, size)) + 0.4 * (np.arange(count) % 2)[:, None] * (np.arange(size) < 4)
    return values.astype(np.float32)


def problem(name: str = "x", count: int = 120, **changes: Any) -> SearchProblem:
    """Return a problem whose last fifth is the test part; the rest goes to the folds in pairs of both classes."""
    fold = np.where(np.arange(count) < 0.8 * count, np.arange(count) // 2 % FOLDS, -1)
    return replace(SearchProblem(name, np.arange(count), np.arange(count) % 2, fold, False, GRID, 1000), **changes)


@pytest.mark.parametrize("standardize", [False, True])
def test_search_equals_scikit_learns_grid_search(standardize: bool) -> None:
    values, task = features(0), problem(standardize=standardize)
    result = search_serially({"x": values}, {"probe": task})["probe"]
    inside = task.fold >= 0
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    peer = GridSearchCV(
        make_pipeline(StandardScaler() if standardize else "passthrough", model),
        {"logisticregression__C": list(GRID)},
        scoring="roc_auc",
        cv=PredefinedSplit(task.fold[inside]),
    ).fit(values[inside].astype(np.float64), task.classes[inside])
    assert result.c == peer.best_params_["logisticregression__C"]
    assert list(result.aucs.values()) == pytest.approx(list(peer.cv_results_["mean_test_score"]), abs=1e-9)
    assert result.validation_auc == pytest.approx(peer.best_score_, abs=1e-9)
    tested = values[~inside].astype(np.float64)
    assert result.probabilities == pytest.approx(peer.predict_proba(tested)[:, 1], abs=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_kept_classifier_gives_the_probabilities_of_the_fit(standardize: bool) -> None:
    values = 30 * features(0) + 7
    task = problem(standardize=standardize, tests_every_c=True, keeps_classifier=True)
    kept = search_serially({"x": values}, {"probe": task})["probe"]
    assert kept.classifier is not None
    np.testing.assert_allclose(kept.classifier.probabilities(values[task.fold == -1]), kept.probabilities, atol=1e-12)
    assert (kept.classifier.scale == 1).all() != standardize
    plain = search_serially({"x": values}, {"probe": replace(task, keeps_classifier=False)})["probe"]
    assert plain.classifier is None
    assert plain.probabilities.tobytes() == kept.probabilities.tobytes()


def test_out_of_fold_probabilities_are_in_the_order_of_the_development_rows() -> None:
    values, task = features(1), problem(rows=np.random.default_rng(0).permutation(120))
    task = replace(task, classes=task.rows % 2)
    result = search_serially({"x": values}, {"probe": task})["probe"]
    inside = task.fold >= 0
    classes, fold = task.classes[inside], task.fold[inside]
    aucs = [roc_auc_score(classes[fold == part], result.validation[fold == part]) for part in range(FOLDS)]
    assert np.mean(aucs) == pytest.approx(result.validation_auc)
    assert len(result.probabilities) == (~inside).sum()


def test_smallest_c_is_chosen_when_several_validate_equally_well() -> None:
    values = np.where(np.arange(120) % 2, 1, -1).astype(np.float32)[:, None]  # every C ranks it perfectly
    result = search_serially({"x": values}, {"probe": problem(c_grid=(1.0, 0.1, 10.0))})["probe"]
    assert result.aucs == {1.0: 1.0, 0.1: 1.0, 10.0: 1.0}
    assert (result.c, result.at_edge) == (0.1, True)


@settings(max_examples=50)
@given(aucs=st.lists(st.lists(st.floats(0.5, 1), min_size=5, max_size=5), min_size=2, max_size=8))
def test_one_standard_error_rule_takes_the_smallest_c_that_is_not_clearly_worse(aucs: list[list[float]]) -> None:
    task = problem(c_grid=(0.001, 0.01, 0.1, 1.0, 10.0), one_standard_error=True)
    of_folds = [np.array(fold) for fold in aucs]
    chosen = task.c_grid.index(choose_c(task, of_folds))
    best = task.c_grid.index(choose_c(replace(task, one_standard_error=False), of_folds))
    means = [statistics.fmean(of_c) for of_c in zip(*aucs, strict=True)]
    error = statistics.stdev([fold[best] for fold in aucs]) / len(aucs) ** 0.5
    assert means[best] == pytest.approx(max(means))
    assert means[chosen] >= max(means) - error - 1e-9
    assert all(mean < max(means) - error + 1e-9 for mean in means[:chosen])


def test_every_c_is_tested_if_asked_for_and_nothing_else_changes() -> None:
    values, task = features(2), problem(standardize=True)
    plain, tried = (
        search_serially({"x": values}, {"p": replace(task, tests_every_c=every)})["p"] for every in (False, True)
    )
    assert plain.test_aucs == {}
    for name in ("c", "validation_auc", "fits", "unconverged", "aucs", "errors", "at_edge"):
        assert getattr(plain, name) == getattr(tried, name)
    assert np.array_equal(plain.probabilities, tried.probabilities)
    for c in GRID:
        alone = search_serially({"x": values}, {"p": replace(task, c_grid=(c,))})["p"]
        assert tried.test_aucs[c] == roc_auc_score(task.classes[task.fold < 0], alone.probabilities)


@pytest.mark.parametrize(("grid", "at_edge"), [((0.1,), False), ((0.001, 0.1), True), ((0.001, 0.01, 1e3, 1e4), False)])
def test_edge_is_reported_only_when_the_grid_has_an_inside(grid: tuple[float, ...], at_edge: bool) -> None:
    result = search_serially({"x": features(2, size=60)}, {"probe": problem(c_grid=grid)})["probe"]
    assert result.at_edge is at_edge
    assert result.at_edge is (len(grid) > 1 and result.c in (min(grid), max(grid)))


def test_held_out_classes_change_its_auc_and_no_fit_of_that_fold() -> None:
    values, honest = features(3), problem(c_grid=(0.1,))
    flipped = replace(honest, classes=np.where(honest.fold == 1, 1 - honest.classes, honest.classes))
    result = search_serially({"x": values}, {"honest": honest, "flipped": flipped})
    inside = honest.fold[honest.fold >= 0]
    same = result["honest"].validation[inside == 1] == result["flipped"].validation[inside == 1]
    assert same.all()
    other = result["honest"].validation[inside == 0] == result["flipped"].validation[inside == 0]
    assert not other.any()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), standardize=st.booleans())
def test_test_part_touches_nothing_but_its_own_predictions(seed: int, standardize: bool) -> None:
    values, task = features(4), problem(standardize=standardize, max_iterations=20)
    random = np.random.default_rng(seed)
    other = np.where((task.fold < 0)[:, None], random.normal(size=values.shape), values).astype(np.float32)
    flipped = replace(task, classes=np.where(task.fold < 0, random.integers(0, 2, 120), task.classes))
    result, again = (search_serially({"x": v}, {"p": t})["p"] for v, t in ((values, task), (other, flipped)))
    assert (result.aucs, result.c, result.fits) == (again.aucs, again.c, again.fits)
    assert (result.validation == again.validation).all()
    assert (result.probabilities != again.probabilities).any()


def test_standardized_probe_does_not_care_about_the_scale_of_a_feature() -> None:
    values = features(5)
    scaled = values * np.float32(2) ** (np.arange(24) % 6)  # powers of two: exact
    result = search_serially(
        {"x": values, "y": scaled}, {"x": problem("x", standardize=True), "y": problem("y", standardize=True)}
    )
    assert result["x"].validation == pytest.approx(result["y"].validation, abs=1e-9)
    plain = search_serially({"x": values, "y": scaled}, {"x": problem("x"), "y": problem("y")})
    assert plain["x"].validation != pytest.approx(plain["y"].validation, abs=1e-3)


def test_fits_that_did_not_converge_are_counted() -> None:
    values = features(6)
    result = search_serially({"x": values}, {"short": problem(max_iterations=1), "long": problem()})
    assert (result["short"].fits, result["short"].unconverged) == (len(GRID) * FOLDS + 1, len(GRID) * FOLDS + 1)
    assert not result["short"].converged
    assert (result["long"].unconverged, result["long"].converged) == (0, True)


def test_fit_says_whether_it_converged_and_passes_other_warnings_on() -> None:
    values, classes = features(7), np.arange(120) % 2
    assert fit_classifier(values, classes, 1.0, 1000)[1] is True
    assert fit_classifier(values, classes, 1.0, 1)[1] is False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_classifier(1e30 * values, classes, 1e30, 5)
    assert all(issubclass(warning.category, RuntimeWarning) for warning in caught)
