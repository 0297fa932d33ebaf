from collections.abc import Callable
from io import BytesIO

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from sharding.auditing.hamming import distances
from sharding.images.fingerprint import FINGERPRINT
from sharding.images.perceptual import (
    MAX_HASH_DISTANCE,
    MIN_CORRELATION,
    center_thumbnail,
    correlation,
    fingerprint_of,
    perceptual_hashes,
    thumbnail,
)
from sharding.simulation.datasets import write_cell


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    """Twenty simulated radiographs, each of another patient."""
    root = tmp_path_factory.mktemp("phantoms") / "cell"
    write_cell(root, {"train": 20, "val": 2, "test": 2}, seed=0, size_px=224)
    images = [Image.open(path).convert("L") for path in sorted(root.rglob("train/*/*.jpeg"))]
    patients = {
        path.name.rsplit("_", 1)[0].rsplit("-", 1)[0]: image
        for path, image in zip(sorted(root.rglob("train/*/*.jpeg")), images, strict=True)
    }
    return list(patients.values())


def saved(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("L")


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(width * left), round(height * top), width - round(width * right), height - round(height * bottom))
    )


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again at quality 30": lambda image: saved(image, 30),
    "half the size": lambda image: saved(
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), 90
    ),
    "squeezed to a square": lambda image: saved(image.resize((224, 224)), 90),
    "5 % brighter": lambda image: saved(image.point(lambda value: min(255, round(value * 1.05))), 90),
    "more contrast": lambda image: saved(ImageEnhance.Contrast(image).enhance(1.1), 90),
    "1 % off every side": lambda image: saved(cropped(image, 0.01, 0.01, 0.01, 0.01), 80),
    "2 % off one side": lambda image: saved(cropped(image, 0.02, 0, 0, 0), 80),
}


def measured(first: Image.Image, second: Image.Image) -> tuple[int, float]:
    thumbnails = np.stack([thumbnail(first), thumbnail(second)])
    hashes = perceptual_hashes(thumbnails)
    return int(distances(hashes[:1], hashes[1:])[0]), correlation(*thumbnails)


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_near_its_original(copy: str, phantoms: list[Image.Image]) -> None:
    for phantom in phantoms:
        distance, correlated = measured(phantom, COPIES[copy](phantom))
        assert distance <= MAX_HASH_DISTANCE
        assert correlated >= MIN_CORRELATION


def test_other_patients_are_not_near(phantoms: list[Image.Image]) -> None:
    thumbnails = np.stack([thumbnail(phantom) for phantom in phantoms])
    first, second = np.triu_indices(len(phantoms), 1)
    hashes = perceptual_hashes(thumbnails)
    assert distances(hashes[first], hashes[second]).min() > MAX_HASH_DISTANCE
    correlations = [correlation(thumbnails[i], thumbnails[j]) for i, j in zip(first[::5], second[::5], strict=True)]
    assert max(correlations) < MIN_CORRELATION


def test_the_hash_is_that_of_imagehash(phantoms: list[Image.Image]) -> None:
    thumbnails = [np.asarray(phantom.resize((64, 64), Image.Resampling.LANCZOS)) for phantom in phantoms]
    hashes = perceptual_hashes(np.stack(thumbnails))
    for phantom, row in zip(phantoms, hashes, strict=True):
        bits = np.unpackbits(row.view(np.uint8), bitorder="little")
        assert np.array_equal(bits, imagehash.phash(phantom, hash_size=16).hash.reshape(-1))


def test_correlation_does_not_depend_on_the_order(phantoms: list[Image.Image]) -> None:
    first, second = thumbnail(phantoms[0]), thumbnail(COPIES["2 % off one side"](phantoms[0]))
    assert correlation(first, second) == correlation(second, first)
    assert correlation(first, first) == pytest.approx(1)
    assert correlation(first, 255 - first) < 0


@pytest.mark.parametrize("level", [0, 1, 200, 255])
def test_a_flat_image_correlates_with_nothing(level: int, phantoms: list[Image.Image]) -> None:
    flat = np.full((64, 64), level, np.uint8)
    assert correlation(flat, thumbnail(phantoms[0])) == 0
    assert correlation(flat, flat) == 0


def test_a_center_square_is_near_the_center_of_its_original_and_not_near_the_whole(phantoms: list[Image.Image]) -> None:
    for phantom in phantoms:
        wide = phantom.resize((300, 224))
        square = saved(wide.crop((38, 0, 262, 224)).resize((150, 150), Image.Resampling.LANCZOS), 80)
        assert measured(wide, square)[0] > MAX_HASH_DISTANCE
        thumbnails = np.stack([center_thumbnail(wide), center_thumbnail(square)])
        hashes = perceptual_hashes(thumbnails)
        assert distances(hashes[:1], hashes[1:])[0] <= MAX_HASH_DISTANCE
        assert correlation(*thumbnails) >= MIN_CORRELATION


def test_the_center_of_a_square_is_the_whole_and_that_of_a_tall_image_is_not(phantoms: list[Image.Image]) -> None:
    square = np.frombuffer(fingerprint_of(phantoms[0].resize((200, 200))), FINGERPRINT)[0]
    assert np.array_equal(square["center"], square["whole"])
    tall = np.frombuffer(fingerprint_of(phantoms[0].resize((224, 300))), FINGERPRINT)[0]
    assert not np.array_equal(tall["center"], tall["whole"])
