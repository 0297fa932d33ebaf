"""The two checks of maps, on maps whose answer is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.pictures.grad_cam import GradCam
from evaluation.pictures.lung_region import outside_of
from evaluation.pictures.weight_randomization import randomize, rank_correlations, structural_similarities
from ssl_core.views.parameters import Fit

SQUARE = np.array([[100, 100]])


def test_equal_attention_has_the_share_of_the_area() -> None:
    shares, areas = outside_of(np.ones((1, 7, 7), np.float32), SQUARE, "pad")
    assert shares == pytest.approx(areas)
    # A frame of a tenth, and at each corner what a quarter by a quarter has beyond it; pixels of the grid round both.
    assert areas == pytest.approx(1 - 0.8**2 + 4 * 0.15**2, abs=0.03)


def test_attention_in_the_middle_is_inside_in_a_corner_outside_and_none_has_no_share() -> None:
    maps = np.zeros((3, 16, 16), np.float32)
    maps[0, 6:10, 6:10] = 1
    maps[1, :3, :3] = 1
    shares, _ = outside_of(maps, np.repeat(SQUARE, 3, axis=0), "pad")
    np.testing.assert_array_equal(shares, [0, 1, np.nan])


@pytest.mark.parametrize(("fit", "expected"), [("pad", True), ("squash", False), ("square", False)])
def test_what_lies_beside_a_high_film_is_outside(fit: Fit, expected: bool) -> None:
    maps = np.zeros((1, 16, 16), np.float32)
    maps[0, 6:10, 3] = 1  # a fifth from the left: beside a film that is half as wide as it is high
    [share], _ = outside_of(maps, np.array([[200, 100]]), fit)
    assert (share > 0.9) == expected and (share < 0.1) == (not expected)


def test_alike_maps_are_alike_and_opposite_ones_are_not() -> None:
    maps = np.random.default_rng(0).random((5, 7, 7)).astype(np.float32)
    np.testing.assert_allclose(rank_correlations(maps, 3 * maps), 1)
    np.testing.assert_allclose(rank_correlations(maps, 1 - maps), -1)
    np.testing.assert_allclose(structural_similarities(maps, 3 * maps), 1)
    assert (structural_similarities(maps, 1 - maps) < 0).all()
    assert np.isnan(rank_correlations(maps, np.zeros_like(maps))).all()


def small_network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    return nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def textures(count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 16, 16) with a patch of 6 x 6 stripes on noise, upright where the class is 1, else lying."""
    images, classes = torch.randn(count, 1, 16, 16) / 4, torch.arange(count) % 2
    stripes = torch.tensor([1.0, -1.0]).repeat(3).expand(6, 6)
    for image, is_upright, (top, left) in zip(images, classes, torch.randint(0, 11, (count, 2)).tolist(), strict=True):
        image[0, top : top + 6, left : left + 6] += stripes if is_upright else stripes.t()
    return images, classes


def test_maps_of_a_trained_network_become_others_with_its_weights() -> None:
    network, classifier = small_network(0), nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*network.parameters(), *classifier.parameters()], lr=1e-2)
    for _ in range(80):
        images, classes = textures(16)
        loss = F.binary_cross_entropy_with_logits(classifier(network(images))[:, 0], classes.float())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    images, classes = textures(64)
    assert ((classifier(network(images))[:, 0] > 0) == classes.bool()).float().mean() > 0.95

    directions = classifier.weight.detach() * (2 * classes[:, None] - 1)

    def maps() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        found = GradCam(network, "layers", network[0], (16, 16)).evidence(images, directions)
        return found.clamp(min=0).numpy()

    trained, correlations = maps(), []
    for share in (0.0, 0.5, 1.0):  # of the layers, the last ones first
        randomize(network, small_network(1), share)
        correlations.append(np.nanmean(rank_correlations(trained, maps())))
    assert correlations[0] == pytest.approx(1)
    assert correlations[1] < 0.6 and correlations[2] < 0.6, correlations
