"""Pixels of radiographs and maps for people to look at."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
from PIL import Image

from evaluation.data.extractor import Extractor
from evaluation.data.joined_sets import ProbedSet
from evaluation.results.picture_records import LONGEST_SIDE_PX
from infra.arrays import Float32, Int64, UInt8
from ssl_core.views.batches import WholeImage, image_batches


def radiographs(extractor: Extractor, labeled_set: ProbedSet, rows: Int64, side_px: int) -> Iterator[UInt8]:
    """Yield the gray levels (side, side) of images of a set, framed as the probe frames them.

    Args:
        extractor: reads images as the probe did
        labeled_set: the set
        rows: (n,) the images, in ascending order
        side_px: width and height of the pictures

    Raises:
        RunFailed: if an image is damaged
    """
    if not len(rows):
        return
    with closing(
        image_batches(
            labeled_set.shards,
            WholeImage(side_px, extractor.preprocessing.fit, antialias=True),
            numbers=rows,
            local_batch=extractor.local_batch,
            mean=0.0,
            std=1.0,
            view_executor=extractor.view_executor,
            device=extractor.device,
        )
    ) as batches:
        for batch in batches:
            yield from map(gray_levels, batch.views[0][:, 0].cpu().numpy())


def side_px(labeled_set: ProbedSet) -> int:
    """Return the side of the pictures of a set: that of its largest image, up to 320 px."""
    return min(LONGEST_SIDE_PX, int(labeled_set.samples.sizes.max()))


def enlarged(cells: Float32, side_px: int) -> Float32:
    """Return a map (h, w) of values from 0 as a picture (side_px, side_px) of values from 0 to 1, its largest."""
    scaled = cells / max(float(cells.max()), float(np.finfo(np.float32).tiny))
    return np.asarray(Image.fromarray(scaled).resize((side_px, side_px), Image.Resampling.BILINEAR))


def gray_levels(values: Float32) -> UInt8:
    """Return values from 0 to 1 as gray levels."""
    return np.rint(values.clip(0, 1) * 255).astype(np.uint8)
