"""Images in memory as encoded batches."""

from collections.abc import Generator, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from evaluation.inference.images import encoded_batch
from infra.arrays import UInt8
from infra.errors import require
from sharding.images.encode import reduced_size
from sharding.reading.stream import EncodedBatch


def array_batches(
    images: Sequence[UInt8] | UInt8, shorter_side_px: int, local_batch: int
) -> Generator[EncodedBatch, None, None]:
    """Yield images without loss, after reducing large ones as packing does.

    Args:
        images: gray images (H, W), of any sizes
        shorter_side_px: larger images are reduced to this shorter side
        local_batch: images in a batch

    Raises:
        UserError: if an image is of another type or shape
    """
    for start in range(0, len(images), local_batch):
        chosen = [
            _reduced(image, start + number, shorter_side_px)
            for number, image in enumerate(images[start : start + local_batch])
        ]
        contents = [_png(image) for image in chosen]
        yield encoded_batch(contents, [image.height for image in chosen], [image.width for image in chosen])


def _reduced(image: UInt8, number: int, shorter_side_px: int) -> Image.Image:
    array = np.asarray(image)
    require(
        array.dtype == np.uint8 and array.ndim == 2 and array.size > 0,
        f"image {number} is {array.dtype} of shape {array.shape}, but must be uint8 of shape (height, width)",
    )
    whole = Image.fromarray(array)
    size = reduced_size(whole.size, shorter_side_px)
    return whole if size == whole.size else whole.resize(size, Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=0)
    return file.getvalue()
