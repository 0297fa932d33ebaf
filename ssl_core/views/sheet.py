"""A contact sheet: samples beside their two views, with what was drawn for each, so that one can see what is learned.

The views are made by an executor, as in training. On the original, each view's crop is outlined in its own colour.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sharding.images.encode import ImageRejected, decode
from sharding.reading.stream import EncodedBatch
from ssl_core.views import ViewInputs, ViewTask, executor
from ssl_core.views.spec import VIEWS, DrawnView, ViewParameters, ViewSpec, draw

_DPI: Final = 100
_CELL_PX: Final = 256  # an image's share of the sheet
_GAP_PX: Final = 24
_CAPTION_PX: Final = 58
_TITLE_PX: Final = 44
_INK: Final = "#1f2933"
_COLOURS: Final = ("#e8590c", "#1c7ed6")  # of the first and the second view


def view_sheet(
    batch: EncodedBatch, spec: ViewSpec, *, seed: int, kind: str = "auto", names: Sequence[str] | None = None
) -> npt.NDArray[np.uint8]:
    """Draw the sheet of these samples, a row each; returns its pixels (H, W, 3).

    batch: the samples, with the epochs whose views are drawn; one that does not decode is shown as such.
    seed: of the views. kind: of the executor, which here runs on the CPU. names: what to call the samples; their
    identities unless given.
    """
    drawn = draw(spec, seed, batch.rows, batch.epochs)
    views = [view.parameters(spec.size_px) for view in drawn]
    whole = [image if valid else None for image, valid in zip(batch.encoded, batch.valid, strict=True)]
    task = ViewTask(spec.size_px, VIEWS, mean=0.0, std=1 / 255, max_batch=len(whole), threads=1)
    (made,) = executor(kind, task).run(iter([ViewInputs(whole, batch.rows, views)]))

    figure, axes = _grid(len(whole))
    epochs = ", ".join(str(epoch) for epoch in np.unique(batch.epochs).tolist())
    figure.suptitle(
        f"{spec.size_px} px views, seed {seed}, epoch {epochs}",
        y=1 - _TITLE_PX / 2 / _height_px(len(whole)),
        va="center",
    )
    names = names or [f"{sample:016x}" for sample in batch.rows["sample"].tolist()]
    for place, (name, row) in enumerate(zip(names, axes, strict=True)):
        if not made.decoded[place]:
            _say_why(row, name, made.reasons.get(place, "its bytes are damaged"))
            continue
        _show_original(row[0], batch.encoded[place], name)
        for view, colour in enumerate(_COLOURS):
            _outline(row[0], views[view], place, spec.size_px, colour)
            _show_view(
                row[1 + view], made.views[view][place, 0], caption(drawn[view], batch.rows[place], place), colour
            )
    return _pixels(figure)


def to_png(sheet: npt.NDArray[np.uint8]) -> bytes:
    """Encode a sheet as PNG."""
    file = BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def _pixels(figure: Figure) -> npt.NDArray[np.uint8]:
    file = BytesIO()
    figure.savefig(file, format="rgba", dpi=_DPI)
    width, height = (round(side * _DPI) for side in figure.get_size_inches())
    return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].copy()


def _height_px(rows: int) -> int:
    return _TITLE_PX + rows * (_CELL_PX + _CAPTION_PX + _GAP_PX)


def _grid(rows: int) -> tuple[Figure, list[list[Axes]]]:
    """Lay out rows of three square cells with room for a caption below each, to the pixel."""
    width_px, height_px = (1 + VIEWS) * (_CELL_PX + _GAP_PX) + _GAP_PX, _height_px(rows)
    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor="white")
    axes: list[list[Axes]] = []
    for row in range(rows):
        bottom_px = height_px - _TITLE_PX - row * (_CELL_PX + _CAPTION_PX + _GAP_PX) - _CELL_PX
        axes.append([])
        for column in range(1 + VIEWS):
            left_px = _GAP_PX + column * (_CELL_PX + _GAP_PX)
            place = (left_px / width_px, bottom_px / height_px, _CELL_PX / width_px, _CELL_PX / height_px)
            cell = figure.add_axes(place)
            cell.set_axis_off()
            axes[-1].append(cell)
    return figure, axes


def _show_original(cell: Axes, encoded: npt.NDArray[np.uint8], name: str) -> None:
    try:
        image, _ = decode(encoded.tobytes())
    except ImageRejected as rejected:  # by Pillow, though not by the executor
        _write_below(cell, [name, str(rejected)])
        return
    height, width = image.height, image.width
    # edges in the views' coordinates, where a pixel covers [column, column + 1)
    cell.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    side = max(height, width)
    cell.set_xlim((width - side) / 2, (width + side) / 2)
    cell.set_ylim((height + side) / 2, (height - side) / 2)
    _write_below(cell, [name, f"{width} x {height} px"])


def _outline(cell: Axes, view: ViewParameters, place: int, size_px: int, colour: str) -> None:
    """Draw onto the original what a view shows of it."""
    corners = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]) * size_px
    x, y = view.matrix[place, :, :2] @ corners + view.matrix[place, :, 2:]
    cell.plot(x, y, color=colour, linewidth=1.5)


def _show_view(cell: Axes, pixels: torch.Tensor, caption: list[str], colour: str) -> None:
    cell.imshow(pixels.numpy(), cmap="gray", vmin=0, vmax=255)
    size_px = len(pixels)
    cell.plot([0, size_px - 1], [-0.5, -0.5], color=colour, linewidth=4, solid_capstyle="butt")
    _write_below(cell, caption)


def _say_why(row: Sequence[Axes], name: str, reason: str) -> None:
    _write_below(row[0], [name])
    row[1].text(0, 0.5, f"does not decode:\n{reason}", transform=row[1].transAxes, va="center", fontsize=9, color=_INK)


def _write_below(cell: Axes, lines: Sequence[str]) -> None:
    text = "\n".join(lines)
    cell.text(0, -0.02, text, transform=cell.transAxes, va="top", fontsize=8.5, linespacing=1.3, color=_INK)


def caption(drawn: DrawnView, row: np.void, place: int) -> list[str]:
    """Say what was drawn for one view of one image."""
    view = DrawnView(*(field[place] for field in drawn))
    height, width = int(row["height"]), int(row["width"])
    area = 100 * view.crop_w * view.crop_h / (height * width)
    turn = f"{'flipped, ' if view.mirrored else ''}rotated {view.degrees:+.1f}°"
    blur = f"blur {view.blur_sigma_px:.2f} px" if view.blur_sigma_px > 0 else "no blur"
    return [
        f"crop {area:.0f} % at ({view.centre_x / width:.2f}, {view.centre_y / height:.2f}), "
        f"{view.crop_w:.0f} x {view.crop_h:.0f}",
        f"{turn}, {blur}",
        f"brightness {view.brightness:.2f}, contrast {view.contrast:.2f}",
    ]
