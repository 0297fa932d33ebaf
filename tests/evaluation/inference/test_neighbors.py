"""Distances to the training images, against scikit-learn and against what they must be."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from evaluation.inference.neighbors import Neighbors, nearest
from infra.arrays import Float32

random = np.random.default_rng(0)


def features(images: int) -> Float32:
    return random.normal(size=(images, 8)).astype(np.float32) + 1


def test_distances_are_those_of_scikit_learns_neighbors() -> None:
    trained, new = features(300), features(40)
    peer = NearestNeighbors(n_neighbors=1, metric="cosine").fit(trained)
    assert Neighbors(trained, np.arange(300)).distances(new) == pytest.approx(peer.kneighbors(new)[0][:, 0], abs=1e-6)


@pytest.mark.parametrize("block", [1, 1 << 10, 1 << 23])
def test_nearest_images_are_those_of_scikit_learn_in_blocks_of_any_size(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.inference.neighbors.FEATURES_A_BLOCK", block)
    everything, new = features(300), features(7)
    rows = np.random.default_rng(1).permutation(300)[:200]
    peer = NearestNeighbors(n_neighbors=5, metric="cosine").fit(everything[rows])
    distances, positions = peer.kneighbors(new)
    found, cosines = nearest(new, everything, rows, 5)
    assert np.array_equal(found, rows[positions])
    assert cosines == pytest.approx(1 - distances, abs=1e-6)


def test_fewer_images_than_neighbors_are_all_found() -> None:
    everything = features(3)
    found, cosines = nearest(features(2), everything, np.array([2, 0]), 5)
    assert np.sort(found).tolist() == [[0, 2], [0, 2]]
    assert (np.diff(cosines) <= 0).all()


def test_quantile_of_images_like_the_training_images_is_spread_evenly() -> None:
    everything = features(1500)
    neighbors = Neighbors(everything[:800], np.arange(800))
    quantiles = neighbors.quantiles(neighbors.distances(everything[800:]))
    assert np.abs(np.quantile(quantiles, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.07


def test_siblings_of_a_training_image_do_not_make_a_new_patient_look_odd() -> None:
    """Ten nearly equal images of each patient: alone, a patient's own images are near, those of others are not."""
    patients = np.repeat(np.arange(60), 10)
    trained = features(60)[patients] + 1e-3 * features(600)
    neighbors = Neighbors(trained.astype(np.float32), patients)
    quantiles = neighbors.quantiles(neighbors.distances(features(60)))
    assert 0.2 < np.median(quantiles) < 0.8


def test_quantile_is_unknown_if_all_training_images_are_of_one_patient() -> None:
    neighbors = Neighbors(features(5), np.zeros(5, np.int64))
    assert np.isnan(neighbors.quantiles(np.array([0.1]))).all()
