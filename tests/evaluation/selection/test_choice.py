import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from evaluation.results.datasets import TaskKey
from evaluation.results.scores import Estimate
from evaluation.results.selection import CheckpointSelection, MeasureVerdict
from evaluation.selection.choice import LAST, LOSS, RANDOM, choose_checkpoint, goodness_of, judge
from evaluation.selection.label_free import MEASURES
from infra.arrays import Float64

NAMES = ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
AUCS = np.array([0.70, 0.80, 0.75, 0.78])


def by_measure(
    good: dict[str, list[float]], aucs: Float64 = AUCS, resampled: Float64 | None = None
) -> dict[str, MeasureVerdict]:
    names = [f"epoch {number}" for number in range(1, len(aucs) + 1)]
    resampled = np.empty((len(aucs), 0)) if resampled is None else resampled
    result = judge(good, names, aucs, resampled, key=TaskKey("cell", "rigorous"))
    return {verdict.measure: verdict for verdict in result}


def values_of(estimate: Estimate | None) -> tuple[float | None, ...]:
    assert estimate is not None
    return estimate.value, estimate.low, estimate.high


def healthy(uniformity: float) -> dict[str, float]:
    return dict.fromkeys(MEASURES, 0.5) | {"uniformity": uniformity, "spread": 0.5, "constant dimensions": 0.1}


def collapsed(uniformity: float) -> dict[str, float]:
    return healthy(uniformity) | {"spread": 0.002}


def noisy(seed: int, aucs: Float64, resamples: int = 400, noise: float = 0.01) -> Float64:
    """Return resampled AUCs (k, B): shared noise moves all checkpoints alike, the rest moves each independently."""
    random = np.random.default_rng(seed)
    common = random.normal(size=resamples) * noise
    return aucs[:, None] + common + random.normal(size=(len(aucs), resamples)) * noise / 2


def test_measure_that_orders_as_the_labels_do_has_correlation_one_and_no_regret() -> None:
    result = by_measure({"good": list(AUCS), "bad": list(-AUCS)}, resampled=np.repeat(AUCS[:, None], 50, axis=1))
    assert values_of(result["good"].rank_correlation) == pytest.approx((1, 1, 1))
    assert (result["good"].chosen, result["good"].regret) == ("epoch 2", Estimate(0, 0, 0))
    assert values_of(result["bad"].rank_correlation) == pytest.approx((-1, -1, -1))
    assert result["bad"].chosen == "epoch 1"
    assert result["bad"].regret.value == pytest.approx(0.10)


def test_last_and_random_are_judged_like_the_measures() -> None:
    result = by_measure({"good": list(AUCS)})
    assert list(result) == ["good", LAST, RANDOM]
    assert result[LAST].chosen == "epoch 4"
    assert result[LAST].regret == Estimate(result[LAST].regret.value)
    assert result[LAST].regret.value == pytest.approx(0.02)
    assert (result[RANDOM].chosen, result[RANDOM].rank_correlation) == ("-", None)
    assert result[RANDOM].regret == Estimate(result[RANDOM].regret.value)
    assert result[RANDOM].regret.value == pytest.approx((0.10 + 0.05 + 0.02) / 4)
    assert {(verdict.dataset, verdict.preset) for verdict in result.values()} == {("cell", "rigorous")}


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), count=st.integers(3, 12), levels=st.sampled_from([2, 4, 1000]))
def test_correlation_is_scipys_with_ties_and_regret_is_never_negative(seed: int, count: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    good, aucs = random.integers(0, levels, count) / levels, random.integers(0, levels, count) / levels
    resampled = random.integers(0, levels, (count, 20)) / levels
    result = by_measure({"measure": list(good)}, aucs, resampled)
    assert all(verdict.regret.value >= 0 and (verdict.regret.low or 0) >= 0 for verdict in result.values())
    if np.ptp(good) == 0 or np.ptp(aucs) == 0:
        assert result["measure"].rank_correlation is None
    else:
        assert result["measure"].rank_correlation is not None
        assert result["measure"].rank_correlation.value == pytest.approx(spearmanr(good, aucs).statistic, abs=1e-12)


def test_intervals_are_percentiles_of_the_joint_resamples() -> None:
    resampled = noisy(0, AUCS)
    result = by_measure({"measure": [0.0, 1.0, 3.0, 2.0]}, resampled=resampled)["measure"]
    regrets = resampled.max(axis=0) - resampled[2]
    correlations = [spearmanr([0.0, 1.0, 3.0, 2.0], column).statistic for column in resampled.T]
    assert result.rank_correlation is not None
    assert (result.regret.low, result.regret.high) == pytest.approx(tuple(np.percentile(regrets, [2.5, 97.5])))
    low, high = np.percentile(correlations, [2.5, 97.5])
    assert (result.rank_correlation.low, result.rank_correlation.high) == pytest.approx((low, high))


def test_intervals_hold_the_value_whatever_the_measure() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        aucs = np.sort(random.uniform(0.7, 0.9, 8))
        good = {"near": list(aucs + random.normal(size=8) * 0.03), "none": list(random.normal(size=8))}
        for verdict in by_measure(good, aucs, noisy(seed, aucs)).values():
            for estimate in (verdict.rank_correlation, verdict.regret):
                if estimate is not None:
                    assert estimate.low is not None
                    assert estimate.high is not None
                    assert estimate.low <= estimate.value <= estimate.high, (seed, verdict)


def test_resamples_without_an_auc_are_left_out() -> None:
    resampled = noisy(0, AUCS)
    with_gaps = np.concatenate([resampled, np.full((4, 30), np.nan)], axis=1)
    with_gaps[1:, -10:] = 0.9
    good = {"measure": [0.0, 1.0, 3.0, 2.0]}
    assert by_measure(good, resampled=with_gaps) == by_measure(good, resampled=resampled)
    alone = by_measure(good, resampled=with_gaps[:, -30:])["measure"]
    assert (alone.regret.low, alone.regret.high) == (None, None)


def test_correlation_is_none_if_it_is_undefined() -> None:
    assert by_measure({"constant": [1.0, 1.0, 1.0, 1.0]})["constant"].rank_correlation is None
    assert by_measure({"constant": [1.0, 1.0, 1.0, 1.0]})["constant"].chosen == "epoch 4"
    assert by_measure({"measure": [1.0, 2.0]}, np.array([0.7, 0.8]))["measure"].rank_correlation is None
    assert by_measure({"measure": [1.0, 2.0, 3.0]}, np.array([0.8, 0.8, 0.8]))["measure"].rank_correlation is None
    assert by_measure({"measure": [1.0]}, np.array([0.7]))["measure"].regret == Estimate(0)


def test_goodness_turns_every_measure_so_that_more_is_better() -> None:
    better = {"LiDAR": 9.0, "RankMe": 9.0, "alpha-ReQ": 1.1, "alignment": 0.1, "uniformity": -3.0}
    better |= {"spread": 0.9, "constant dimensions": 0.0}
    worse = {"LiDAR": 2.0, "RankMe": 2.0, "alpha-ReQ": 0.5, "alignment": 0.9, "uniformity": -1.0}
    worse |= {"spread": 0.1, "constant dimensions": 0.5}
    result = goodness_of({"epoch 1": worse, "epoch 2": better}, losses=[3.0, 2.0])
    assert set(result) == {*MEASURES, LOSS}
    assert all(first < second for first, second in result.values())
    assert set(goodness_of({"epoch 1": worse})) == set(MEASURES)


def test_choice_is_the_lowest_uniformity() -> None:
    chosen, why = choose_checkpoint({"epoch 1": healthy(-1), "epoch 2": healthy(-3), "epoch 3": healthy(-2)})
    assert chosen == "epoch 2"
    assert why == "its uniformity of -3.00 is the lowest of 3 checkpoints"


def test_choice_among_nearly_equal_ones_is_the_last() -> None:
    chosen, why = choose_checkpoint({"epoch 1": healthy(-1), "epoch 2": healthy(-3), "epoch 3": healthy(-2.98)})
    assert chosen == "epoch 3"
    assert why == (
        "its uniformity of -2.98 is within 1 % of the lowest of 3 checkpoints, -3.00 of epoch 2; "
        "no later checkpoint's is"
    )
    assert choose_checkpoint({"epoch 1": healthy(-3), "epoch 2": healthy(-2.96)})[0] == "epoch 1"


def test_choice_skips_collapsed_checkpoints() -> None:
    dead = healthy(-3) | {"constant dimensions": 0.95}
    chosen, why = choose_checkpoint(
        {"epoch 1": healthy(-2), "epoch 2": healthy(-1), "epoch 3": collapsed(-4), "epoch 4": dead}
    )
    assert chosen == "epoch 1"
    assert why == "its uniformity of -2.00 is the lowest of 2 checkpoints that did not collapse (2 did)"


def test_choice_says_so_when_all_have_collapsed() -> None:
    chosen, why = choose_checkpoint({"epoch 1": collapsed(-1), "epoch 2": collapsed(-2)})
    assert chosen == "epoch 2"
    assert why.startswith("all 2 checkpoints have collapsed: features hardly differ between images (spread at")
    assert "none is worth using" in why


def test_choice_counts_one_checkpoint_in_the_singular() -> None:
    only, left = {"epoch 1": healthy(-2)}, {"epoch 1": healthy(-2), "epoch 2": collapsed(-3)}
    assert choose_checkpoint(only)[1] == "its uniformity of -2.00 is the lowest of 1 checkpoint"
    assert choose_checkpoint(left)[1].endswith("is the lowest of 1 checkpoint that did not collapse (1 did)")
    assert choose_checkpoint({"epoch 1": collapsed(-2)})[1].startswith("the only checkpoint has collapsed: ")


@pytest.fixture
def selection() -> CheckpointSelection:
    measured = {"epoch 1": healthy(10), "epoch 2": healthy(30)}
    aucs = np.array([0.7, 0.8])
    verdicts = judge(goodness_of(measured), list(measured), aucs, noisy(0, aucs), key=TaskKey("cell", "rigorous"))
    return CheckpointSelection(
        "120 images of 96 patients of cell's development part", 120, measured, *choose_checkpoint(measured), verdicts
    )


def test_selection_comes_back_from_json(selection: CheckpointSelection) -> None:
    assert msgspec.json.decode(msgspec.json.encode(selection), type=CheckpointSelection) == selection
