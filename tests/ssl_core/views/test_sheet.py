import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import EncodedBatch, packed_batches
from ssl_core.views.drawing import DrawnView
from ssl_core.views.parameters import Steps
from ssl_core.views.sheet import caption, to_png, view_sheet
from ssl_core.views.spec import ViewSpec

SPEC = ViewSpec(size_px=48)


@pytest.fixture(scope="module")
def batch(simulated_shards: Path) -> EncodedBatch:
    return next(packed_batches(ShardSet([simulated_shards]), 3))


def test_sheet_has_a_row_for_every_sample_and_depends_on_what_was_drawn(batch: EncodedBatch) -> None:
    sheet = view_sheet(batch, SPEC, seed=0, view_executor="torchvision")
    assert sheet.dtype == np.uint8
    assert sheet.shape[2] == 3
    single = EncodedBatch(0, batch.encoded[:1], batch.rows[:1], batch.epochs[:1], batch.valid[:1])
    row_px = (sheet.shape[0] - view_sheet(single, SPEC, seed=0, view_executor="torchvision").shape[0]) / 2
    assert row_px > 250
    assert np.array_equal(sheet, view_sheet(batch, SPEC, seed=0, view_executor="torchvision"))
    others = [
        view_sheet(batch, SPEC, seed=1, view_executor="torchvision"),
        view_sheet(batch._replace(epochs=batch.epochs + 1), SPEC, seed=0, view_executor="torchvision"),
    ]
    assert all((sheet != other).mean() > 0.1 for other in others)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(to_png(sheet)))), sheet)


def test_sheet_looks_the_same_by_either_executor(batch: EncodedBatch) -> None:
    dali, torchvision = (
        view_sheet(batch, SPEC, seed=0, view_executor=executor).astype(int) for executor in ("dali", "torchvision")
    )
    assert np.abs(dali - torchvision).max() <= 2


def test_samples_that_do_not_decode_leave_the_others_as_they_are(batch: EncodedBatch) -> None:
    whole = view_sheet(batch, SPEC, seed=0, view_executor="torchvision")
    damaged = batch._replace(
        encoded=[batch.encoded[0], batch.encoded[1][:-2].copy(), batch.encoded[2]], valid=np.array([True, True, False])
    )
    sheet = view_sheet(damaged, SPEC, seed=0, view_executor="torchvision")
    row_px = len(sheet) // 3
    assert np.array_equal(sheet[: row_px - 20], whole[: row_px - 20])
    assert (sheet[row_px + 40 :] != whole[row_px + 40 :]).mean() > 0.2


def test_caption_says_what_was_drawn() -> None:
    drawn = DrawnView(
        center_x=np.array([0.0, 100.0]),
        center_y=np.array([0.0, 150.0]),
        crop_w=np.array([1.0, 200.0]),
        crop_h=np.array([1.0, 100.0]),
        mirrored=np.array([False, True]),
        degrees=np.array([0.0, -3.14]),
        blur_sigma_px=np.array([0.0, 1.25]),
        brightness=np.array([1.0, 0.8]),
        contrast=np.array([1.0, 1.234]),
        gamma=np.array([1.0, 0.7]),
        erased_x=np.array([0.0, 3.0]),
        erased_y=np.array([0.0, 4.0]),
        erased_w=np.array([0.0, 5.0]),
        erased_h=np.array([0.0, 6.0]),
        image_w=np.array([400.0, 400.0]),
        image_h=np.array([200.0, 200.0]),
    )
    lines = [
        "crop 25 % at (0.25, 0.75), 200 x 100",
        "flipped, rotated -3.1°, blur 1.25 px",
        "brightness 0.80, contrast 1.23",
    ]
    assert caption(drawn, Steps(), 1) == lines
    assert caption(drawn, Steps(gamma=True, erase=True), 1) == [*lines, "gamma 0.70, erased 5 x 6 px"]
    assert caption(drawn, Steps(erase=True), 0)[1::2] == ["rotated +0.0°, no blur", "nothing erased"]


def test_crops_of_reduced_images_are_outlined_where_they_were_drawn(batch: EncodedBatch) -> None:
    """A view of 16 px shrinks these crops, so their images are reduced; the originals in the left column are not."""
    plain, reduced = (
        view_sheet(batch, ViewSpec(size_px=16, antialias=antialias), seed=0, view_executor="torchvision")
        for antialias in (False, True)
    )
    left = slice(0, 290)
    assert np.array_equal(plain[:, left], reduced[:, left])
    assert not np.array_equal(plain, reduced)
