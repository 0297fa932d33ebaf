import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from torch import nn

from evaluation.selection.label_free import (
    MEASURES,
    alignment,
    alpha_req,
    extract_views,
    goodness,
    has_collapsed,
    lidar,
    lidar_bound,
    measures,
    rankme,
    uniformity,
)
from infra.arrays import Float64

ABOUT_AXES = {"spread", "constant dimensions"}  # the other measures do not depend on the axes


def orthonormal(random: np.random.Generator, rows: int, columns: int) -> Float64:
    return np.linalg.qr(random.normal(size=(rows, columns)))[0]


def rotation(random: np.random.Generator, dimensions: int) -> Float64:
    return orthonormal(random, dimensions, dimensions)


def samples_and_noise(
    random: np.random.Generator, signal: Float64, noise: Float64, samples: int = 200, views: int = 10
) -> Float64:
    """Views (m, q, D) of samples that differ by `signal` (D,) a dimension, and their views by `noise` (D,)."""
    identity = random.normal(size=(samples, 1, len(signal))) * signal
    return identity + random.normal(size=(samples, views, len(signal))) * noise


@pytest.mark.parametrize(("images", "dimensions", "k"), [(60, 24, 1), (60, 24, 7), (24, 60, 7), (24, 60, 24)])
def test_rankme_of_k_directions_with_equal_energy_is_k(images: int, dimensions: int, k: int) -> None:
    random = np.random.default_rng(0)
    features = 3 * orthonormal(random, images, k) @ orthonormal(random, dimensions, k).T
    assert rankme(features) == pytest.approx(k, rel=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("images", "dimensions"), [(400, 150), (120, 300)])
def test_alpha_of_a_power_law_is_its_exponent(images: int, dimensions: int, exponent: float) -> None:
    random = np.random.default_rng(0)
    rank = min(images - 1, dimensions)
    centered = random.normal(size=(images, rank))
    centered -= centered.mean(axis=0)
    deviations = np.arange(1, rank + 1) ** (-exponent / 2)
    features = 5 + np.linalg.qr(centered)[0] * deviations @ orthonormal(random, dimensions, rank).T
    assert alpha_req(features) == pytest.approx(exponent, abs=1e-6)


def test_alpha_of_few_directions_is_far_above_one() -> None:
    random = np.random.default_rng(0)
    few = random.normal(size=(100, 2)) @ random.normal(size=(2, 32))
    many = random.normal(size=(100, 32))
    assert goodness("alpha-ReQ", alpha_req(few)) < -2 < goodness("alpha-ReQ", alpha_req(many))


@pytest.mark.parametrize("directions", [1, 4, 16])
def test_lidar_is_the_number_of_directions_that_separate_samples(directions: int) -> None:
    """The other dimensions vary as much, but by the view: RankMe counts them and LiDAR does not."""
    tells = np.arange(32) < directions
    views = samples_and_noise(np.random.default_rng(0), np.where(tells, 10.0, 0.0), np.where(tells, 0.1, 10.0))
    assert lidar(views) == pytest.approx(directions, rel=0.15)
    assert rankme(views.reshape(-1, 32)) > 28


def test_lidar_falls_as_noise_of_the_views_drowns_directions() -> None:
    values = []
    for clear in (32, 16, 8, 4, 2):
        noise = np.where(np.arange(32) < clear, 0.1, 5.0)
        values.append(lidar(samples_and_noise(np.random.default_rng(0), np.ones(32), noise)))
    assert values == sorted(values, reverse=True)
    assert values[0] > 28
    assert values[-1] < 4


def test_lidar_of_views_that_all_agree_is_the_rank_of_their_samples() -> None:
    random = np.random.default_rng(0)
    means = random.normal(size=(300, 5)) @ orthonormal(random, 40, 5).T
    assert lidar(np.repeat(means[:, None], 4, axis=1)) == pytest.approx(5, rel=0.05)


def test_lidar_is_that_of_the_matrices_in_the_paper() -> None:
    views = samples_and_noise(np.random.default_rng(0), np.linspace(1, 3, 6), np.linspace(2, 1, 6), 50, 4)
    means = views.mean(axis=1)
    between = np.cov(means.T, bias=True)
    within = np.mean([np.cov(of_sample.T, bias=True) for of_sample in views], axis=0)
    ridge = 1e-4 * np.trace(between + within) / 6
    values, vectors = np.linalg.eigh(within + ridge * np.eye(6))
    whitening = vectors / np.sqrt(values) @ vectors.T
    shares = np.linalg.eigvalsh(whitening @ between @ whitening)
    shares /= shares.sum()
    assert lidar(views) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)


@pytest.mark.parametrize(
    ("images", "views", "dimensions", "sound"),
    [(512, 10, 512, False), (513, 10, 512, True), (2560, 3, 2048, True), (512, 10, 2048, False), (100, 2, 64, True)],
)
def test_lidar_is_left_out_when_the_number_of_images_bounds_it(
    images: int, views: int, dimensions: int, sound: bool
) -> None:
    bound = lidar_bound(images, views, dimensions)
    assert (bound is None) is sound
    assert bound is None or f"{images} images" in bound


def test_alignment_is_zero_for_equal_views_and_four_for_opposite_ones() -> None:
    random = np.random.default_rng(0)
    row = random.normal(size=(20, 1, 8))
    assert alignment(np.repeat(row, 3, axis=1)) == pytest.approx(0, abs=1e-12)
    assert alignment(row * np.array([2.0, -5.0])[:, None]) == pytest.approx(4)


@pytest.mark.parametrize("count", [3, 40, 2100])
def test_alignment_and_uniformity_are_means_over_all_pairs(count: int) -> None:
    random = np.random.default_rng(count)
    rows = random.normal(size=(count, 6))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert uniformity(rows) == pytest.approx(np.log(np.exp(-2 * pdist(unit) ** 2).mean()), rel=1e-9)
    views = random.normal(size=(20, 4, 6))
    lengths = np.linalg.norm(views, axis=2, keepdims=True)
    assert alignment(views) == pytest.approx(np.mean([pdist(of_sample) ** 2 for of_sample in views / lengths]))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), images=st.integers(3, 40), dimensions=st.integers(2, 40), scale=st.floats(1e-3, 1e3))
def test_measures_do_not_depend_on_scale_and_only_those_about_axes_on_rotation(
    seed: int, images: int, dimensions: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    features = (random.normal(size=(images, dimensions)) + 1).astype(np.float32)
    views = (features[:, None] + 0.5 * random.normal(size=(images, 3, dimensions))).astype(np.float32)
    turn = scale * rotation(random, dimensions)
    plain = measures(features, views)
    turned = measures((features @ turn).astype(np.float32), (views @ turn).astype(np.float32))
    scaled = measures((features * scale).astype(np.float32), (views * scale).astype(np.float32))
    assert set(plain) == set(MEASURES) - ({"LiDAR"} if images <= dimensions else set())
    assert scaled == pytest.approx(plain, rel=1e-3, abs=1e-3)
    for name in set(plain) - ABOUT_AXES:
        assert turned[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e6])
@pytest.mark.parametrize(("images", "dimensions"), [(5, 64), (64, 5)])
def test_features_of_one_value_have_the_worst_of_each_measure(value: float, images: int, dimensions: int) -> None:
    features = np.full((images, dimensions), value, np.float32)
    values = measures(features, np.repeat(features[:, None], 4, axis=1))
    assert all(np.isfinite(list(values.values())))
    assert (values.get("LiDAR", 1), values["RankMe"]) == pytest.approx((1, 1))
    assert goodness("alpha-ReQ", values["alpha-ReQ"]) < -2
    assert values["uniformity"] == pytest.approx(0)
    assert values["spread"] == pytest.approx(0, abs=1e-9)
    assert values["constant dimensions"] == 1
    assert has_collapsed(values)


@pytest.mark.parametrize("noise", [1e-5, 1e-3])
def test_features_that_hardly_differ_are_flagged_and_spread_ones_are_not(noise: float) -> None:
    random = np.random.default_rng(0)
    spread = random.normal(size=(50, 64)).astype(np.float32)
    collapsed = (1 + noise * spread).astype(np.float32)
    assert has_collapsed(measures(collapsed, np.repeat(collapsed[:, None], 2, axis=1)))
    assert not has_collapsed(measures(spread, np.repeat(spread[:, None], 2, axis=1)))


def test_spread_is_one_for_directions_drawn_evenly_and_dead_dimensions_are_counted() -> None:
    features = np.random.default_rng(0).normal(size=(2000, 40)).astype(np.float32)
    views = np.repeat(features[:20, None], 2, axis=1)
    assert measures(features, views)["spread"] == pytest.approx(1, abs=0.02)
    features[:, :10] = 0
    assert measures(features, views)["constant dimensions"] == pytest.approx(0.25)


def test_extracted_views_are_those_of_evaluation_mode_by_sample_and_view() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3), nn.Dropout(0.5))
    views = [torch.randn(7, 1, 4, 4) for _ in range(5)]
    batches = [[view[:4] for view in views], [view[4:] for view in views]]
    result = extract_views(backbone.train(), batches, torch.device("cpu"))
    assert result.shape == (7, 5, 3)
    assert result.dtype == np.float32
    with torch.no_grad():
        for number, view in enumerate(views):
            np.testing.assert_allclose(result[:, number], backbone.eval()(view).numpy(), atol=1e-6)
