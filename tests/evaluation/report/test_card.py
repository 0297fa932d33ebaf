"""The Python that a model card prints, and the scores that it quotes."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.report.card import of_checkpoint, prepare_code
from infra.arrays import Float32
from sharding.images.encode import decode, encode
from ssl_core.checkpoints.export.folder import Packing, Preparation
from ssl_core.views.parameters import Fit, whole_image
from ssl_core.views.torchvision import reduce, warp
from tests.support.pictures import picture
from tests.support.probe_results import made_results

SIZE_PX, MEAN, STD = 48, 0.48, 0.21


def sternums_input(path: Path, packing: Packing, fit: Fit, antialias: bool) -> Float32:
    """The input (size, size) of a raw file after it was packed, by Sternum's own code."""
    packed = encode(
        path.read_bytes(), packing.shorter_side_px, packing.jpeg_quality, packing.image_format, packing.pass_through
    )
    gray = np.asarray(decode(packed.content)[0], np.float32)
    view = whole_image(SIZE_PX, [packed.height], [packed.width], fit, antialias=antialias)
    height, width = view.reduced_px[0].astype(int).tolist()
    if height:
        gray = reduce(gray, height, width)
    pixels = warp(torch.from_numpy(gray)[None], view.matrix, SIZE_PX)[0, 0]
    values: Float32 = ((pixels / 255 - MEAN) / STD).numpy()
    return values


def prepared(path: Path, packing: list[Packing], fit: Fit, channels: int = 1, antialias: bool = False) -> Float32:
    names: dict[str, Any] = {}
    preparation = Preparation(SIZE_PX, channels, MEAN, STD, fit, mirrored=False, antialias=antialias, packing=packing)
    exec(prepare_code(preparation), names)
    values: Float32 = names["prepare"](path)
    assert values.dtype == np.float32 and values.shape == (channels, SIZE_PX, SIZE_PX)
    return values


FILES = {
    "square.jpeg": (64, 64, "L"),
    "wide.jpeg": (90, 61, "L"),
    "tall.png": (61, 90, "L"),
    "large.jpeg": (701, 512, "L"),  # decoded at a half or a quarter of its size, then reduced
    "color.jpeg": (150, 111, "RGB"),
    "color.png": (150, 111, "RGB"),
}
FITS: tuple[Fit, ...] = ("pad", "squash", "square")
PACKINGS = [
    Packing("cell", 80, "jpeg", 85, pass_through=False),
    Packing("cell", 80, "jpeg", 85, pass_through=True),
    Packing("cell", 80, "png", 85, pass_through=False),
]
TELLING = {("large.jpeg", "pad"), ("wide.jpeg", "squash"), ("color.jpeg", "square")}


@pytest.mark.parametrize(
    ("name", "fit"),
    [pytest.param(*case, marks=() if case in TELLING else pytest.mark.slow) for case in itertools.product(FILES, FITS)],
)
@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: f"{packing.image_format}, {packing.pass_through}")
def test_the_printed_python_makes_the_input_of_sternum(name: str, fit: Fit, packing: Packing, tmp_path: Path) -> None:
    width, height, mode = FILES[name]
    picture(3, width, height).convert(mode).save(tmp_path / name)
    for antialias in (False, True):
        values = prepared(tmp_path / name, [packing], fit, antialias=antialias)
        expected = sternums_input(tmp_path / name, packing, fit, antialias)
        np.testing.assert_allclose(values[0], expected, atol=2e-4)
    values = prepared(tmp_path / name, [packing], fit)
    three = prepared(tmp_path / name, [packing], fit, channels=3)
    assert all(np.array_equal(channel, values[0]) for channel in three)


def test_without_a_known_packing_the_printed_python_takes_the_pixels_as_they_are(tmp_path: Path) -> None:
    picture(3, SIZE_PX, SIZE_PX).save(tmp_path / "image.png")
    gray = np.asarray(Image.open(tmp_path / "image.png"), np.float64)
    np.testing.assert_allclose(prepared(tmp_path / "image.png", [], "pad")[0], (gray / 255 - MEAN) / STD, atol=1e-5)


def test_a_card_quotes_the_exported_checkpoint_and_no_other() -> None:
    results = made_results()
    steps = sorted({row.step for row in results.rows if row.kind == "checkpoint" and row.step is not None})
    for step in (steps[0], steps[-1]):
        kept = of_checkpoint(results, step)
        assert kept is not None
        assert {row.step for row in kept.rows if row.kind == "checkpoint"} == {step}
        controls = [row for row in results.rows if row.kind not in ("checkpoint", "finetuned")]
        assert [row for row in kept.rows if row.kind not in ("checkpoint", "finetuned")] == controls
    assert of_checkpoint(results, steps[-1] + 1) is None
    last = next(row for row in results.rows if row.step == steps[-1])
    finetuned = replace(results, rows=[*results.rows, replace(last, kind="finetuned", step=None)])
    kept_first, kept_last = of_checkpoint(finetuned, steps[0]), of_checkpoint(finetuned, steps[-1])
    assert kept_first is not None and kept_last is not None
    assert "finetuned" not in {row.kind for row in kept_first.rows}  # it was trained from the last checkpoint
    assert "finetuned" in {row.kind for row in kept_last.rows}
