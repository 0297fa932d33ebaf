"""The optional steps of views: both executors against torchvision's functions, and the laws that the steps keep."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from infra.errors import UserError
from ssl_core.views import PIXEL_TOLERANCE, ViewInputs, ViewTask, build_view_executor
from ssl_core.views.drawing import draw, draw_views
from ssl_core.views.parameters import MOST_SHRINK, Steps, ViewParameters, whole_image
from ssl_core.views.spec import ViewSpec
from ssl_core.views.torchvision import reduce, warp
from tests.ssl_core.views.test_views import EPOCHS, EXECUTORS, IMAGES, ROWS, SIZES, decoded, index_rows

ALL = ViewSpec(
    size_px=48,
    brightness=0.8,
    contrast=0.8,
    antialias=True,
    rotation_probability=0.5,
    jitter_probability=0.8,
    contrast_about="mean",
    clip=True,
    gamma_probability=0.7,
    gamma=(0.5, 2.0),
    erase_probability=0.6,
)
ALONE: dict[str, dict[str, Any]] = {
    "antialias": {"antialias": True},
    "contrast_about": {"contrast_about": "mean"},
    "clip": {"clip": True},
    "gamma": {"gamma_probability": 0.7},
    "erase": {"erase_probability": 0.6},
    "all": {},
}


def make(executor: str, views: Sequence[ViewParameters], steps: Steps, size_px: int = 48) -> list[Tensor]:
    """The views in gray levels from 0 to 255."""
    task = ViewTask(size_px, len(views), mean=0.0, std=1 / 255, max_batch=12, threads=1, steps=steps)
    (batch,) = build_view_executor(executor, task).run(iter([ViewInputs(IMAGES, ROWS, views)]))
    return batch.views


@pytest.mark.parametrize("option", ALONE)
def test_executors_agree_within_the_stated_tolerance(option: str) -> None:
    spec = ALL if option == "all" else ViewSpec(size_px=48, brightness=0.8, contrast=0.8, **ALONE[option])
    views = draw_views(spec, 7, ROWS, EPOCHS)
    plain = make("torchvision", views, Steps())
    ours, theirs = (make(executor, views, spec.steps) for executor in EXECUTORS)
    for first, second, without in zip(ours, theirs, plain, strict=True):
        difference = (first - second).abs()
        assert difference.mean() < PIXEL_TOLERANCE["mean"]
        assert difference.max() < PIXEL_TOLERANCE["max"]
        assert (first - without).abs().mean() > 1  # the step does something


def test_options_do_not_move_the_draws_of_others() -> None:
    for plain, more in zip(draw(ViewSpec(size_px=48), 7, ROWS, EPOCHS), draw(ALL, 7, ROWS, EPOCHS), strict=True):
        for name in ("center_x", "center_y", "crop_w", "crop_h", "mirrored", "blur_sigma_px"):
            assert np.array_equal(getattr(plain, name), getattr(more, name))
        turned = more.degrees != 0
        assert 0 < turned.sum() < len(turned)
        assert np.array_equal(plain.degrees[turned], more.degrees[turned])


def test_more_draws_never_change() -> None:
    """A run resumed by a later version must get the same views, so these values must not change."""
    rows = index_rows([(320, 390)])
    rows["sample"] = 0x0123456789ABCDEF
    first, second = draw(replace(ALL, erase_probability=1.0), 42, rows, np.array([7]))
    # degrees, brightness, contrast, gamma, left, top, width and height of the rectangle
    chosen = [5, 7, 8, 9, 10, 11, 12, 13]
    expected = [-0.072365, 1.450581, 1.702415, 1.961858, 29, 16, 19, 12]
    assert [float(first[field][0]) for field in chosen] == pytest.approx(expected, abs=1e-6)
    expected = [4.806139, 0.365199, 1.122772, 1.219878, 22, 19, 25, 12]
    assert [float(second[field][0]) for field in chosen] == pytest.approx(expected, abs=1e-6)


def test_draws_follow_their_ranges_and_probabilities() -> None:
    count = 4000
    rows = index_rows([(320, 390)] * count)
    view, _ = draw(replace(ALL, erase_area=(0.05, 0.3)), 0, rows, np.zeros(count, np.int64))
    assert (view.degrees != 0).mean() == pytest.approx(0.5, abs=0.03)
    jittered = view.brightness != 1
    assert jittered.mean() == pytest.approx(0.8, abs=0.03)
    assert np.array_equal(jittered, view.contrast != 1)
    curved = view.gamma != 1
    assert curved.mean() == pytest.approx(0.7, abs=0.03)
    assert np.log(view.gamma[curved]).mean() == pytest.approx(0, abs=0.03)
    assert 0.5 <= view.gamma.min() < 0.51 < 1.98 < view.gamma.max() <= 2
    erased = view.erased_w > 0
    assert erased.mean() == pytest.approx(0.6, abs=0.03)
    area = (view.erased_w * view.erased_h)[erased] / 48**2
    assert area.mean() == pytest.approx(0.175, abs=0.01)
    for start, length in ((view.erased_x, view.erased_w), (view.erased_y, view.erased_h)):
        assert start.min() == 0
        assert (start + length).max() == 48  # reaches both borders, and never beyond
        assert np.array_equal(length, np.rint(length))


def whole(count: int = 12, **fields: Any) -> ViewParameters:
    """The whole images at 48 px, with these parameters."""
    rows = ROWS[:count]
    view = whole_image(48, rows["height"], rows["width"], "squash")
    return view._replace(**{name: np.full(count, value, np.float32) for name, value in fields.items()})


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("brightness", "contrast"), [(1.7, 1.8), (0.3, 0.2), (1.0, 1.9)])
def test_jitter_with_clipping_about_the_mean_is_torchvisions(executor: str, brightness: float, contrast: float) -> None:
    (plain,) = make(executor, [whole()], Steps())
    view = whole(brightness=brightness, contrast=contrast)
    (actual,) = make(executor, [view], Steps(contrast_about_mean=True, clip=True))
    for before, after in zip(plain / 255, actual / 255, strict=True):
        expected = tv.adjust_brightness(tv.adjust_contrast(before, contrast), brightness)
        assert torch.allclose(after, expected, atol=1e-4)
    if contrast > 1:
        assert actual.min() == 0
        assert actual.max() == pytest.approx(255)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_gamma_is_torchvisions(executor: str) -> None:
    (plain,) = make(executor, [whole()], Steps())
    (actual,) = make(executor, [whole(gamma=0.6)], Steps(gamma=True))
    assert torch.allclose(actual / 255, tv.adjust_gamma(plain / 255, 0.6), atol=1e-4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_erased_rectangle_is_the_mean_gray_level_and_the_rest_stays(executor: str) -> None:
    rectangles = np.zeros((12, 4), np.float32)
    rectangles[1], rectangles[2] = (5, 7, 20, 11), (0, 0, 48, 48)
    (plain,) = make(executor, [whole()], Steps())
    (actual,) = make(executor, [whole()._replace(erased_px=rectangles)], Steps(erase=True))
    expected = plain.clone()
    expected[1, 0, 7:18, 5:25] = 0
    expected[2] = 0
    assert torch.equal(actual, expected)


@settings(max_examples=60)
@given(st.integers(2, 200), st.integers(2, 200), st.floats(0.02, 1), st.floats(0.02, 1), st.integers(0, 99))
def test_reduction_keeps_constants_mirror_images_and_the_range(
    height: int, width: int, share: float, other: float, seed: int
) -> None:
    size = max(1, round(share * height)), max(1, round(other * width))
    image = np.random.default_rng(seed).uniform(0, 255, (height, width)).astype(np.float32)
    reduced = reduce(image, *size)
    assert reduced.shape == size
    assert image.min() - 1e-3 <= reduced.min() <= reduced.max() <= image.max() + 1e-3
    assert np.allclose(reduce(np.ascontiguousarray(image[::-1, ::-1]), *size), reduced[::-1, ::-1], atol=0.01)
    assert np.allclose(reduce(np.full_like(image, 77), *size), 77, atol=1e-3)


def test_reduction_keeps_the_mean_and_an_image_of_the_same_size() -> None:
    image = decoded(0).numpy()
    assert reduce(image, 40, 50).mean() == pytest.approx(image.mean(), rel=0.005)
    assert np.allclose(reduce(image, *image.shape), image, atol=1e-4)


@pytest.mark.parametrize("size", [(61, 80), (100, 97), (150, 95)])
def test_reduced_image_is_torchvisions_antialiased_resize_away_from_the_border(size: tuple[int, int]) -> None:
    """torchvision leaves out what is beyond the border; here, and in DALI, the border is repeated."""
    image = decoded(0)
    expected = tv.resize(image[None], list(size), antialias=True)[0].numpy()
    inside = (slice(3, -3), slice(3, -3))
    assert np.allclose(reduce(image.numpy(), *size)[inside], expected[inside], atol=0.01)


def grating(size_px: int, period_px: float) -> Tensor:
    columns = torch.arange(size_px) + 0.5
    return (127.5 + 127.5 * torch.cos(2 * torch.pi * columns / period_px)).expand(1, size_px, size_px).contiguous()


def views_of(image: Tensor, *, antialias: bool, size_px: int = 48) -> Tensor:
    sides = [image.shape[1]]
    view = whole_image(size_px, sides, sides, "pad", antialias=antialias)
    if antialias:
        image = torch.from_numpy(reduce(image[0].numpy(), *view.reduced_px[0].astype(int).tolist()))[None]
    return warp(image, view.matrix, size_px)[0, 0]


@pytest.mark.parametrize(("shrink", "period_px"), [(4, 4.4), (4, 2.3), (6.5, 7.1), (3, 2.9)])
def test_a_fine_grating_becomes_gray_instead_of_a_coarse_one(shrink: float, period_px: float) -> None:
    image = grating(round(48 * shrink), period_px)
    aliased, antialiased = (views_of(image, antialias=antialias)[6:-6, 6:-6] for antialias in (False, True))
    assert aliased.std() > 15
    assert antialiased.std() < 0.3 * aliased.std()
    assert antialiased.mean() == pytest.approx(127.5, abs=2)


def test_a_coarse_grating_stays() -> None:
    image = grating(192, 40)
    plain, antialiased = (views_of(image, antialias=antialias) for antialias in (False, True))
    assert (plain - antialiased).abs().max() < 8
    assert antialiased.std() > 0.95 * plain.std()


def test_only_sides_that_shrink_too_much_are_reduced_and_just_as_far_as_needed() -> None:
    heights, widths = np.array([96, 144, 145, 600, 60]), np.array([96, 144, 400, 150, 2000])
    view = whole_image(96, heights, widths, "squash", antialias=True)
    assert view.reduced_px.tolist() == [[0, 0], [0, 0], [144, 144], [144, 144], [60, 144]]
    plain = whole_image(96, heights, widths, "squash")
    sizes = np.stack([heights, widths], axis=1)
    reduced = np.where(view.reduced_px > 0, view.reduced_px, sizes)
    scale = (sizes / reduced)[:, ::-1]
    assert np.allclose(view.matrix * scale[:, :, None], plain.matrix, rtol=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_images_that_no_view_shrinks_much_are_the_same_with_and_without_antialias(executor: str) -> None:
    spec = ViewSpec(size_px=160)  # SIZES are below 1.5 times this
    assert max(max(size) for size in SIZES) <= MOST_SHRINK * 160
    plain, more = (draw_views(replace(spec, antialias=on), 1, ROWS, EPOCHS) for on in (False, True))
    for without, with_it in zip(
        make(executor, plain, Steps(), 160), make(executor, more, Steps(True), 160), strict=True
    ):
        assert torch.allclose(without, with_it, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jitter_probability": 1.5}, r"views\.jitter_probability=1\.5 must be between 0 and 1; try 1\.0"),
        ({"rotation_probability": -0.1}, r"views\.rotation_probability=-0\.1 must be between 0 and 1"),
        ({"gamma": (0.0, 1.0)}, r"views\.gamma=\[0\.0, 1\.0\] must be two numbers from 0\.1 to 10, the smaller first"),
        ({"gamma_probability": 2}, r"views\.gamma_probability=2 must be between 0 and 1"),
        ({"erase_area": (0.1, 0.5)}, r"views\.erase_area=\[0\.1, 0\.5\] must be two numbers from 0\.01 to 0\.3"),
        ({"erase_probability": -1}, r"views\.erase_probability=-1 must be between 0 and 1"),
    ],
)
def test_spec_names_value_rule_and_fix_when_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViewSpec(**arguments)
