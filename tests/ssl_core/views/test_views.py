import io
import struct
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import RunFailed, UserError
from sharding.format.manifest import INDEX_ROW
from ssl_core.views import PIXEL_TOLERANCE, ViewBatch, ViewInputs, ViewTask, build_view_executor
from ssl_core.views.drawing import draw, draw_views
from ssl_core.views.header_check import header_problem
from ssl_core.views.parameters import Fit, ViewParameters, whole_image
from ssl_core.views.spec import ViewSpec

EXECUTORS = ["dali", "torchvision"]


def encoded(height: int, width: int, seed: int, image_format: str = "JPEG", mode: str = "L") -> np.ndarray:
    """A smooth image with as much detail as a radiograph, as one file's bytes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.asarray(image).astype(np.uint16) * 257).save(file, image_format)
    else:
        image.convert(mode).save(file, image_format, **({"quality": 90} if image_format == "JPEG" else {}))
    return np.frombuffer(file.getvalue(), np.uint8).copy()


def index_rows(sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    rows = np.zeros(len(sizes), INDEX_ROW)
    rows["sample"] = np.arange(len(sizes), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    rows["height"], rows["width"] = np.transpose(sizes)
    return rows


SIZES = [(150 + 7 * i, 190 - 5 * i) for i in range(12)]
ROWS = index_rows(SIZES)
IMAGES = [encoded(height, width, seed) for seed, (height, width) in enumerate(SIZES)]
EPOCHS = np.full(len(SIZES), 3)


def task(views_count: int, size_px: int = 64, max_batch: int = 12, threads: int = 1) -> ViewTask:
    """The resulting pixels are gray levels from 0 to 255."""
    return ViewTask(size_px, views_count, mean=0.0, std=1 / 255, max_batch=max_batch, threads=threads)


def make(
    executor: str, views: Sequence[ViewParameters], *, size_px: int = 96, local_batch: int = 12, threads: int = 1
) -> list[torch.Tensor]:
    """Run the images through an executor, in gray levels from 0 to 255, in batches of `local_batch`."""
    run = build_view_executor(executor, task(len(views), size_px, local_batch, threads)).run
    parts = [slice(start, start + local_batch) for start in range(0, len(IMAGES), local_batch)]
    batches = [
        ViewInputs(IMAGES[part], ROWS[part], [ViewParameters(*(field[part] for field in view)) for view in views])
        for part in parts
    ]
    outputs = list(run(iter(batches)))
    return [torch.cat([output.views[view] for output in outputs]) for view in range(len(views))]


def plain(matrix: np.ndarray) -> ViewParameters:
    whole = whole_image(64, ROWS["height"][: len(matrix)], ROWS["width"][: len(matrix)], "pad")
    return whole._replace(matrix=matrix.astype(np.float32))


def decoded(number: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(IMAGES[number].tobytes())), np.float32))


def test_dali_and_torchvision_agree_within_the_stated_tolerance() -> None:
    views = draw_views(ViewSpec(size_px=96), 7, ROWS, EPOCHS)
    for ours, theirs in zip(make("dali", views), make("torchvision", views), strict=True):
        difference = (ours - theirs).abs()
        assert difference.mean() < PIXEL_TOLERANCE["mean"]
        assert difference.max() < PIXEL_TOLERANCE["max"]
        assert ours.std() > 20


@cache
def whole(executor: str) -> list[torch.Tensor]:
    return make(executor, draw_views(ViewSpec(size_px=64), 1, ROWS, EPOCHS), size_px=64)


@settings(max_examples=8)
@given(local_batch=st.integers(1, 12), threads=st.integers(1, 4))
def test_dalis_pixels_do_not_depend_on_batch_size_or_threads(local_batch: int, threads: int) -> None:
    views = draw_views(ViewSpec(size_px=64), 1, ROWS, EPOCHS)
    parts = make("dali", views, size_px=64, local_batch=local_batch, threads=threads)
    assert all(torch.equal(first, second) for first, second in zip(whole("dali"), parts, strict=True))


@pytest.mark.parametrize(("local_batch", "threads"), [(5, 1), (12, 3), (1, 2)])
def test_torchvisions_pixels_hardly_depend_on_batch_size_or_threads(local_batch: int, threads: int) -> None:
    views = draw_views(ViewSpec(size_px=64), 1, ROWS, EPOCHS)
    parts = make("torchvision", views, size_px=64, local_batch=local_batch, threads=threads)
    for first, second in zip(whole("torchvision"), parts, strict=True):
        assert torch.allclose(first, second, atol=1e-3)  # a convolution's sums may be taken in another order


@pytest.mark.parametrize("executor", EXECUTORS)
def test_identity_matrix_gives_the_decoded_pixels(executor: str) -> None:
    identity = np.broadcast_to(np.eye(2, 3), (len(ROWS), 2, 3))
    pixels = make(executor, [plain(identity)])[0]
    for number, image in enumerate(pixels):
        assert torch.allclose(image[0], decoded(number)[:96, :96], atol=0.01)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_matrix_maps_the_view_to_the_image(executor: str) -> None:
    """Row 0 mirrors columns 10 to 106, row 1 takes the view from row 20 on, half a pixel lower."""
    matrix = np.array([[-1, 0, 106], [0, 1, 20.5]])
    pixels = make(executor, [plain(np.broadcast_to(matrix, (len(ROWS), 2, 3)))])[0]
    for number, image in enumerate(pixels):
        source = decoded(number)[20:117, 10:106].flip(1)
        assert torch.allclose(image[0], (source[:-1] + source[1:]) / 2, atol=0.01)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_outside_the_image_its_border_is_repeated(executor: str) -> None:
    matrix = np.array([[1, 0, -40], [0, 1, 0]])
    pixels = make(executor, [plain(np.broadcast_to(matrix, (len(ROWS), 2, 3)))])[0]
    for number, image in enumerate(pixels):
        assert torch.allclose(image[0, :, :40], decoded(number)[:96, :1].expand(96, 40), atol=0.01)


FITS: tuple[Fit, ...] = get_args(Fit)


def as_square(source: torch.Tensor, fit: Fit) -> torch.Tensor:
    """The pixels that a square view shows: with the border repeated (pad), all (squash), or the center (square)."""
    height, width = source.shape
    if fit == "pad":
        side = max(height, width)
        beside = [(side - width) // 2] * 2 + [(side - height) // 2] * 2
        return F.pad(source[None, None], beside, mode="replicate")
    if fit == "square":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return source[None, None, top : top + side, left : left + side]
    return source[None, None]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("fit", FITS)
def test_whole_image_is_made_square_by_its_fit(executor: str, fit: Fit) -> None:
    views = [whole_image(224, ROWS["height"], ROWS["width"], fit, mirrored=mirrored) for mirrored in (False, True)]
    pixels, mirrored = make(executor, views, size_px=224)
    assert torch.allclose(mirrored, pixels.flip(3), atol=0.05)
    for number, image in enumerate(pixels):
        source = decoded(number)
        if (source.shape[0] - source.shape[1]) % 2:
            continue  # a center between two pixels
        expected = F.interpolate(as_square(source, fit), (224, 224), mode="bilinear", align_corners=False)
        assert torch.allclose(image[0, 2:-2, 2:-2], expected[0, 0, 2:-2, 2:-2], atol=0.1)


def test_dali_and_torchvision_show_whole_images_alike_within_a_gray_level() -> None:
    views = [
        whole_image(96, ROWS["height"], ROWS["width"], fit, mirrored=mirrored)
        for fit in FITS
        for mirrored in (False, True)
    ]
    for ours, theirs in zip(make("dali", views), make("torchvision", views), strict=True):
        assert (ours - theirs).abs().max() <= PIXEL_TOLERANCE["max"] == 1.0


@pytest.mark.parametrize("mirrored", [False, True])
def test_square_image_is_the_same_in_every_fit(mirrored: bool) -> None:
    pad, squash, square = (whole_image(96, [70, 201], [70, 201], fit, mirrored=mirrored).matrix for fit in FITS)
    assert np.array_equal(pad, squash)
    assert np.array_equal(pad, square)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_jitter_and_normalization_follow_their_formula(executor: str) -> None:
    identity = np.broadcast_to(np.eye(2, 3, dtype=np.float32), (12, 2, 3))
    brightness, contrast = np.full((2, 12), [[1.2], [0.7]], np.float32)
    view = plain(identity)._replace(brightness=brightness, contrast=contrast)
    run = build_view_executor(executor, ViewTask(64, 1, mean=0.4, std=0.2, max_batch=12)).run
    pixels = next(run(iter([ViewInputs(IMAGES, ROWS, [view])]))).views[0]
    gray = decoded(0)[:64, :64] / 255
    assert torch.allclose(pixels[0, 0], (1.2 * (0.5 + 0.7 * (gray - 0.5)) - 0.4) / 0.2, atol=1e-4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_blur_is_torchvisions_where_sigma_is_above_zero(executor: str) -> None:
    gaussian_blur = pytest.importorskip("torchvision.transforms.v2.functional").gaussian_blur
    identity = np.broadcast_to(np.eye(2, 3), (12, 2, 3))
    sigma = np.where(np.arange(12) % 2, 1.4, 0.0).astype(np.float32)
    pixels = make(executor, [plain(identity)._replace(blur_sigma_px=sigma)])[0]
    for number, image in enumerate(pixels):
        source = decoded(number)[None, :96, :96]
        expected = gaussian_blur(source, kernel_size=[11, 11], sigma=[1.4, 1.4]) if number % 2 else source
        assert torch.allclose(image, expected, atol=0.01)


def batch_of(images: Sequence[np.ndarray | None], sizes: Sequence[tuple[int, int]] | None = None) -> ViewInputs:
    """Two drawn views of these images, whose index has `sizes` (those of IMAGES unless given)."""
    rows = index_rows(sizes or SIZES[: len(images)])
    return ViewInputs(images, rows, draw_views(ViewSpec(size_px=64), 1, rows, np.full(len(rows), 3)))


def run(executor: str, batches: Iterable[ViewInputs], max_batch: int = 12) -> Generator[ViewBatch, None, None]:
    return build_view_executor(executor, task(2, max_batch=max_batch)).run(iter(batches))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_tensors_keep_their_values_after_later_batches(executor: str) -> None:
    held = list(run(executor, [batch_of(IMAGES)] * 8))
    for batch in held[1:]:
        assert all(torch.equal(first, second) for first, second in zip(batch.views, held[0].views, strict=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_two_batches_are_in_flight_while_one_is_used(executor: str) -> None:
    taken = []

    def batches() -> Iterator[ViewInputs]:
        while True:
            taken.append(threading.current_thread())
            yield batch_of(IMAGES)

    view_batches = run(executor, batches())
    next(view_batches)
    assert len(taken) == 3
    next(view_batches)
    assert len(taken) == 4
    view_batches.close()
    assert set(taken) == {threading.current_thread()}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_error_of_the_batches_comes_after_the_batches_before_it(executor: str) -> None:
    def batches() -> Iterator[ViewInputs]:
        yield from [batch_of(IMAGES)] * 3
        raise RunFailed("shard 7 is gone")

    got = []
    with pytest.raises(RunFailed, match="shard 7 is gone"):
        for batch in run(executor, batches()):
            got.append(batch)
    assert len(got) == 3


def with_size(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The JPEG with another size in its header."""
    frame = image.tobytes().index(b"\xff\xc0")
    changed = image.copy()
    changed[frame + 5 : frame + 9] = np.frombuffer(struct.pack(">HH", height, width), np.uint8)
    return changed


def without_quantization(image: np.ndarray) -> np.ndarray:
    """The JPEG without its quantization table: its header is good, no decoder can decode it."""
    start = image.tobytes().index(b"\xff\xdb")
    return np.concatenate([image[:start], image[start + 69 :]])


def damaged_png(height: int, width: int) -> np.ndarray:
    """A PNG whose compressed pixels are damaged, between a good header and a good end."""
    image = encoded(height, width, 0, "PNG")
    image[60:-60] ^= 0x5A
    return image


def with_second_frame(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The JPEG with a second frame header, of another size, after the first one."""
    frame = image.tobytes().index(b"\xff\xc0")
    end = frame + 2 + int.from_bytes(image[frame + 2 : frame + 4].tobytes(), "big")
    second = with_size(image, height, width)[frame:end]
    return np.concatenate([image[:end], second, image[end:]])


def blank_png(side_px: int) -> np.ndarray:
    """A black PNG that is larger than any packed image, and small as a file."""
    file = io.BytesIO()
    Image.new("L", (side_px, side_px)).save(file, "PNG")
    return np.frombuffer(file.getvalue(), np.uint8)


HEIGHT, WIDTH = SIZES[0]
BAD_IMAGES = {
    "cut": (IMAGES[0][: len(IMAGES[0]) // 2].copy(), "its end is missing"),
    "cut png": (encoded(HEIGHT, WIDTH, 0, "PNG")[:-12].copy(), "its end is missing"),
    "text": (np.frombuffer(b"not an image " * 20, np.uint8), "not a JPEG or PNG file"),
    "nothing": (np.zeros(0, np.uint8), "not a JPEG or PNG file"),
    "one byte": (np.full(1, 255, np.uint8), "not a JPEG or PNG file"),
    "headless": (np.frombuffer(b"\xff\xd8\xff\xd9", np.uint8), "declares no size"),
    "absurd size": (with_size(IMAGES[0], 60000, 60000), f"declares 60000 x 60000 px, the index {WIDTH} x {HEIGHT}"),
    "second size": (with_second_frame(IMAGES[0], 20000, 20000), ""),
    "another size": (IMAGES[1], "its header declares"),
    "16 bits": (encoded(HEIGHT, WIDTH, 0, "PNG", "I;16"), "neither 8-bit gray nor 8-bit RGB"),
    "alpha": (encoded(HEIGHT, WIDTH, 0, "PNG", "LA"), "neither 8-bit gray nor 8-bit RGB"),
    "palette": (encoded(HEIGHT, WIDTH, 0, "PNG", "P"), "neither 8-bit gray nor 8-bit RGB"),
    "cmyk": (encoded(HEIGHT, WIDTH, 0, "JPEG", "CMYK"), "neither 8-bit gray nor 8-bit RGB"),
    "no table": (without_quantization(IMAGES[0]), ""),
    "damaged png": (damaged_png(HEIGHT, WIDTH), ""),
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("damage", BAD_IMAGES)
def test_image_that_does_not_decode_affects_only_itself(executor: str, damage: str) -> None:
    bad, message = BAD_IMAGES[damage]
    (good,) = run(executor, [batch_of(IMAGES)])
    batches = list(run(executor, [batch_of(IMAGES), batch_of([bad, *IMAGES[1:]]), batch_of(IMAGES)]))
    assert [batch.decoded.tolist() for batch in batches] == [[True] * 12, [False] + [True] * 11, [True] * 12]
    assert batches[1].reasons.keys() == {0}
    assert message in batches[1].reasons[0]
    assert "\n" not in batches[1].reasons[0]
    for batch in batches:
        for view, other in zip(batch.views, good.views, strict=True):
            assert torch.allclose(view[batch.decoded], other[batch.decoded], atol=1e-3)
            assert not view[~batch.decoded].any()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_image_above_the_limit_of_packing_is_not_decoded(executor: str) -> None:
    side_px = 8001  # 64.02 megapixels
    (batch,) = run(executor, [batch_of([blank_png(side_px), *IMAGES[1:]], [(side_px, side_px), *SIZES[1:]])])
    assert batch.decoded.tolist() == [False] + [True] * 11
    assert list(batch.reasons) == [0]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_batch_survives_images_that_only_their_decoder_refuses(executor: str) -> None:
    bad = BAD_IMAGES["no table"][0]
    positions = [{3}, {0, 5, 11}, set(), set(range(12)), {7}, set(), {2}]
    batches = [
        batch_of([bad if i in chosen else image for i, image in enumerate(IMAGES)], SIZES) for chosen in positions
    ]
    for batch, chosen in zip(batches, positions, strict=True):
        batch.rows["height"][list(chosen)], batch.rows["width"][list(chosen)] = SIZES[0]
    got = list(run(executor, batches))
    assert [set(np.flatnonzero(~view_batch.decoded).tolist()) for view_batch in got] == positions
    assert [set(view_batch.reasons) for view_batch in got] == positions
    for view_batch in got:
        for view, other in zip(view_batch.views, whole(executor), strict=True):
            assert torch.allclose(view[view_batch.decoded], other[view_batch.decoded], atol=1e-3)


@pytest.mark.parametrize(("bad_images", "most"), [(1, 5), (6, 14)])
def test_few_pipelines_are_built_for_images_that_do_not_decode(
    monkeypatch: pytest.MonkeyPatch, bad_images: int, most: int
) -> None:
    """With a GPU, a pipeline takes as long as hundreds of images; other ranks wait meanwhile."""
    dali = pytest.importorskip("ssl_core.views.dali")
    built, pipeline = [], dali.Pipeline

    def build(*values: Any, **options: Any) -> Any:
        built.append(1)
        return pipeline(*values, **options)

    monkeypatch.setattr(dali, "Pipeline", build)
    images = [BAD_IMAGES["no table"][0]] * bad_images + IMAGES[bad_images:]
    damaged = batch_of(images, SIZES)
    damaged.rows["height"][:bad_images], damaged.rows["width"][:bad_images] = SIZES[0]
    batches = list(run("dali", [batch_of(IMAGES), damaged, batch_of(IMAGES)]))
    assert [int((~batch.decoded).sum()) for batch in batches] == [0, bad_images, 0]
    assert len(built) <= most


@pytest.mark.parametrize("executor", EXECUTORS)
def test_requested_blank_is_zeros_without_a_reason(executor: str) -> None:
    (batch,) = run(executor, [batch_of([None, *IMAGES[1:]])])
    assert batch.decoded.tolist() == [False] + [True] * 11
    assert batch.reasons == {}
    assert not any(view[0].any() for view in batch.views)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_png_and_rgb_are_decoded_as_gray_jpeg_is(executor: str) -> None:
    identity = np.broadcast_to(np.eye(2, 3), (3, 2, 3))
    images = [encoded(HEIGHT, WIDTH, 0), encoded(HEIGHT, WIDTH, 0, "PNG"), encoded(HEIGHT, WIDTH, 0, "JPEG", "RGB")]
    rows = index_rows([SIZES[0]] * 3)
    batch = next(build_view_executor(executor, task(1)).run(iter([ViewInputs(images, rows, [plain(identity)])])))
    assert batch.decoded.all()
    assert (batch.views[0] - batch.views[0][:1]).abs().mean() < 2


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@settings(max_examples=200)
@given(data=st.data())
def test_header_check_never_fails_whatever_the_bytes(image_format: str, data: st.DataObject) -> None:
    """Truncated or changed bytes give a reason or none, never an error; truncated ones always give a reason."""
    image = encoded(40, 30, 0, image_format)
    assert header_problem(image, 40, 30) is None
    cut = image[: data.draw(st.integers(0, len(image) - 1))].copy()
    assert header_problem(cut, 40, 30) is not None
    changed = image.copy()
    for position in data.draw(st.lists(st.integers(0, min(len(image), 200) - 1), max_size=5)):
        changed[position] = data.draw(st.integers(0, 255))
    assert header_problem(changed, 40, 30) is None or isinstance(header_problem(changed, 40, 30), str)


def test_header_check_keeps_bombs_from_the_decoders() -> None:
    """An index may declare up to 65,535 px a side, and scans without data cost a decoder as much as others."""
    png = bytearray(encoded(40, 30, 0, "PNG").tobytes())
    png[16:24] = struct.pack(">II", 20_000, 20_000)
    reason = header_problem(np.frombuffer(bytes(png), np.uint8), 20_000, 20_000)
    assert reason is not None
    assert "above 64 megapixels" in reason
    file = io.BytesIO()
    Image.new("L", (2000, 2000)).save(file, "JPEG", progressive=True)
    jpeg = file.getvalue()
    assert header_problem(np.frombuffer(jpeg, np.uint8), 2000, 2000) is None
    scans = jpeg[:-2] + jpeg[jpeg.rindex(b"\xff\xda") : -2] * 300 + jpeg[-2:]
    assert header_problem(np.frombuffer(scans, np.uint8), 2000, 2000) is not None


def test_unknown_executor_is_rejected() -> None:
    with pytest.raises(UserError, match="executor=cuda must be one of auto, dali, torchvision"):
        build_view_executor("cuda", task(2))


def test_draw_never_changes() -> None:
    """A run resumed by a later version must get the same views, so these values must not change."""
    rows = index_rows([(320, 390)])
    rows["sample"] = 0x0123456789ABCDEF
    first, second = draw(ViewSpec(), 42, rows, np.array([7]))
    # center x and y, crop width and height, mirrored, degrees, blur, brightness, contrast
    expected = [157.676949, 158.139064, 208.426977, 188.747031, 1, -0.072365, 0, 1.168968, 1.263406]
    assert [float(field[0]) for field in first[:9]] == pytest.approx(expected, abs=1e-6)
    expected = [191.220912, 150.110593, 232.23956, 266.261638, 1, 4.806139, 0.344374, 0.76195, 1.046039]
    assert [float(field[0]) for field in second[:9]] == pytest.approx(expected, abs=1e-6)


def test_draw_depends_on_seed_epoch_sample_and_view_only() -> None:
    spec = ViewSpec()
    first, second = draw_views(spec, 5, ROWS, EPOCHS)
    chosen = [7, 2, 9]
    for whole, part in zip((first, second), draw_views(spec, 5, ROWS[chosen], EPOCHS[chosen]), strict=True):
        for of_all, of_chosen in zip(whole, part, strict=True):
            assert np.array_equal(of_all[chosen], of_chosen)
    others = [second, draw_views(spec, 6, ROWS, EPOCHS)[0], draw_views(spec, 5, ROWS, EPOCHS + 1)[0]]
    for other in others:
        assert not np.isclose(first.brightness, other.brightness).any()
        assert not np.isclose(first.matrix, other.matrix).all(axis=(1, 2)).any()


@settings(max_examples=100)
@given(
    height=st.integers(20, 600),
    width=st.integers(20, 600),
    least=st.floats(0.05, 1.0),
    aspect=st.floats(1.0, 2.0),
    seed=st.integers(0, 2**31),
)
def test_crops_lie_in_the_image_and_keep_to_their_ranges(
    height: int, width: int, least: float, aspect: float, seed: int
) -> None:
    spec = ViewSpec(size_px=100, crop_area=(least, 1.0), crop_aspect=(1 / aspect, aspect), rotation_degrees=0)
    rows = index_rows([(height, width)] * 20)
    for view in draw_views(spec, seed, rows, np.zeros(20, np.int64)):
        corners = view.matrix @ np.array([[0, 100, 0, 100], [0, 0, 100, 100], [1, 1, 1, 1]], np.float32)
        slack = 1e-3 * max(height, width)
        assert (corners >= -slack).all()
        assert (corners[:, 0] <= width + slack).all()
        assert (corners[:, 1] <= height + slack).all()
        crop_w, crop_h = np.ptp(corners, axis=2).T
        assert (crop_w / crop_h >= 1 / aspect - 1e-3).all()
        assert (crop_w / crop_h <= aspect + 1e-3).all()
        drawn = crop_w * crop_h >= least * height * width * 0.999
        largest = np.isclose(crop_w, width, rtol=1e-3) | np.isclose(crop_h, height, rtol=1e-3)
        assert (drawn | largest).all()  # an elongated image may have no crop of that area and aspect


def test_draws_follow_their_ranges_and_probabilities() -> None:
    rows = index_rows([(320, 390)] * 4000)
    spec = ViewSpec(rotation_degrees=10, flip_probability=0.3, blur_probability=0.6)
    view, _ = draw_views(spec, 0, rows, np.zeros(4000, np.int64))
    blurred = view.blur_sigma_px > 0
    assert blurred.mean() == pytest.approx(0.6, abs=0.03)
    assert view.blur_sigma_px[blurred].mean() == pytest.approx(1.05, abs=0.05)
    assert (np.linalg.det(view.matrix[:, :, :2]) < 0).mean() == pytest.approx(0.3, abs=0.03)
    scaled = view.matrix[:, :, :2] / np.linalg.norm(view.matrix[:, :, :2], axis=2, keepdims=True)
    degrees = np.rad2deg(np.arcsin(scaled[:, 1, 0]))
    assert np.abs(degrees).max() <= 10.001
    assert degrees.std() == pytest.approx(20 / 12**0.5, abs=0.2)
    area = np.abs(np.linalg.det(view.matrix[:, :, :2].astype(np.float64))) * 224**2 / (320 * 390)
    assert area.min() >= 0.2999
    assert area.max() > 0.9
    for factor in (view.brightness, view.contrast):
        assert 0.7 <= factor.min() < 0.71
        assert 1.29 < factor.max() <= 1.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size_px": 8}, r"views\.size_px=8 must be between 16 and 4096; try 224"),
        ({"crop_area": (0.8, 0.2)}, r"views\.crop_area=\[0\.8, 0\.2\] must be two numbers from 0\.01 to 1"),
        ({"crop_area": (0.5, 1.5)}, r"views\.crop_area=\[0\.5, 1\.5\]"),
        ({"flip_probability": 1.5}, r"views\.flip_probability=1\.5 must be between 0 and 1; try 0\.5"),
        ({"rotation_degrees": -1}, r"views\.rotation_degrees=-1 must be between 0 and 180"),
        ({"blur_sigma_px": (0.1, 90)}, r"views\.blur_sigma_px=\[0\.1, 90\] must be two numbers from 0\.01 to 28"),
        ({"brightness": 1.0}, r"views\.brightness=1\.0 must be between 0 and 0\.99; try 0\.3"),
    ],
)
def test_spec_names_value_rule_and_fix_when_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ViewSpec(**arguments)
