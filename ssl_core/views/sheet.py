"""A contact sheet of samples, their views and the drawn parameters, to see what the model learns from.

An executor makes the views, as in training; what it erases is mid-gray here. On the original, each view's crop is
outlined in the view's color, unless the view shows a sibling, which is named below it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import Final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from infra.arrays import UInt8
from sharding.images.encode import ImageRejected, decode
from sharding.reading.stream import EncodedBatch
from ssl_core.views import ViewInputs, ViewTask, build_view_executor
from ssl_core.views.drawing import DrawnView, draw
from ssl_core.views.parameters import GRAY, Steps, ViewParameters
from ssl_core.views.spec import VIEWS, ViewSpec

_DPI: Final = 100
_CELL_PX: Final = 256  # an image's share of the sheet
_GAP_PX: Final = 24
_CAPTION_PX: Final = 58
_TITLE_PX: Final = 44
_INK: Final = "#1f2933"
_COLORS: Final = ("#e8590c", "#1c7ed6")  # of the first and the second view
_SMALL_COLOR: Final = "#2f9e44"


def view_sheet(
    batch: EncodedBatch,
    spec: ViewSpec,
    *,
    seed: int,
    view_executor: str = "auto",
    names: Mapping[int, str] | None = None,
) -> UInt8:
    """Draw the sheet, one row for each sample.

    Args:
        batch: the samples, with the epochs whose views are drawn; a sample that does not decode is shown as such
        spec: ranges of the views
        seed: seed of the views
        view_executor: name of the executor, which runs on the CPU here
        names: names of the images by their identities, which are shown by default

    Returns:
        The pixels (H, W, 3).
    """
    drawn, specs = draw(spec, seed, batch.rows, batch.epochs, batch.second_rows), spec.of_each_view
    views = [view.parameters(of_view) for view, of_view in zip(drawn, specs, strict=True)]
    whole = [image if valid else None for image, valid in zip(batch.encoded, batch.valid, strict=True)]
    task = ViewTask(spec.size_px, VIEWS, mean=GRAY, std=1 / 255, max_batch=len(whole), threads=1)
    task = replace(task, steps=spec.steps, small_sizes_px=spec.small_sizes_px, siblings=True)
    inputs = ViewInputs(whole, batch.rows, views, batch.siblings.of(batch.valid))
    (view_batch,) = build_view_executor(view_executor, task).run(iter([inputs]))

    figure, axes = _grid(len(whole), columns=1 + len(views))
    epochs = ", ".join(str(epoch) for epoch in np.unique(batch.epochs).tolist())
    small = f" and {spec.small.size_px} px" if spec.small_views else ""
    figure.suptitle(
        f"{spec.size_px} px{small} views, seed {seed}, epoch {epochs}",
        y=1 - _TITLE_PX / 2 / _height_px(len(whole)),
        va="center",
    )
    shown = [batch.rows, batch.second_rows, *[batch.rows] * spec.small_views]  # by each view
    for position, row in enumerate(axes):
        name, *others = (_name(rows[position], names) for rows in shown)
        if not view_batch.decoded[position]:
            reasons = (view_batch.reasons.get(place) for place in (position, len(axes) + position))
            _show_reason(row, name, next(filter(None, reasons), "its bytes are damaged"))
            continue
        _show_original(row[0], batch.encoded[position], name)
        for view, color in enumerate(_COLORS + (_SMALL_COLOR,) * spec.small_views):
            text = caption(drawn[view], spec.steps, position)
            if shown[view][position]["sample"] == batch.rows[position]["sample"]:
                _outline(row[0], drawn[view], views[view], position, specs[view].size_px, color)
            else:
                text.append(f"of {others[0]}")
            _show_view(row[1 + view], view_batch.views[view][position, 0], text, color)
    return _pixels(figure)


def _name(row: np.void, names: Mapping[int, str] | None) -> str:
    identity = int(row["sample"])
    return f"{identity:016x}" if names is None else names[identity]


def to_png(sheet: UInt8) -> bytes:
    """Encode a sheet as PNG."""
    file = BytesIO()
    Image.fromarray(sheet).save(file, "PNG")
    return file.getvalue()


def _pixels(figure: Figure) -> UInt8:
    file = BytesIO()
    figure.savefig(file, format="rgba", dpi=_DPI)
    width, height = (round(side * _DPI) for side in figure.get_size_inches())
    return np.frombuffer(file.getvalue(), np.uint8).reshape(height, width, 4)[..., :3].copy()


def _height_px(rows: int) -> int:
    return _TITLE_PX + rows * (_CELL_PX + _CAPTION_PX + _GAP_PX)


def _grid(rows: int, columns: int) -> tuple[Figure, list[list[Axes]]]:
    """Lay out rows of square cells, each with room for a caption below, exact to the pixel."""
    width_px, height_px = columns * (_CELL_PX + _GAP_PX) + _GAP_PX, _height_px(rows)
    figure = Figure(figsize=(width_px / _DPI, height_px / _DPI), dpi=_DPI, facecolor="white")
    axes: list[list[Axes]] = []
    for row in range(rows):
        bottom_px = height_px - _TITLE_PX - row * (_CELL_PX + _CAPTION_PX + _GAP_PX) - _CELL_PX
        axes.append([])
        for column in range(columns):
            left_px = _GAP_PX + column * (_CELL_PX + _GAP_PX)
            rectangle = (left_px / width_px, bottom_px / height_px, _CELL_PX / width_px, _CELL_PX / height_px)
            cell = figure.add_axes(rectangle)
            cell.set_axis_off()
            axes[-1].append(cell)
    return figure, axes


def _show_original(cell: Axes, encoded: UInt8, name: str) -> None:
    try:
        image, _ = decode(encoded.tobytes())
    except ImageRejected as rejected:  # Pillow rejects an image that the executor accepted
        _write_below(cell, [name, str(rejected)])
        return
    height, width = image.height, image.width
    # edges in the views' coordinates, where a pixel covers [column, column + 1)
    cell.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
    side = max(height, width)
    cell.set_xlim((width - side) / 2, (width + side) / 2)
    cell.set_ylim((height + side) / 2, (height - side) / 2)
    _write_below(cell, [name, f"{width} x {height} px"])


def _outline(cell: Axes, drawn: DrawnView, view: ViewParameters, position: int, size_px: int, color: str) -> None:
    """Outline a view's crop on the original."""
    corners = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]) * size_px
    x, y = view.matrix[position, :, :2] @ corners + view.matrix[position, :, 2:]  # in the reduced image
    if view.reduced_px[position].any():
        reduced_h, reduced_w = view.reduced_px[position]
        x, y = x * (drawn.image_w[position] / reduced_w), y * (drawn.image_h[position] / reduced_h)
    cell.plot(x, y, color=color, linewidth=1.5)


def _show_view(cell: Axes, pixels: torch.Tensor, caption: list[str], color: str) -> None:
    cell.imshow(pixels.numpy(), cmap="gray", vmin=-255 * GRAY, vmax=255 * GRAY)
    size_px = len(pixels)
    cell.plot([0, size_px - 1], [-0.5, -0.5], color=color, linewidth=4, solid_capstyle="butt")
    _write_below(cell, caption)


def _show_reason(row: Sequence[Axes], name: str, reason: str) -> None:
    _write_below(row[0], [name])
    row[1].text(0, 0.5, f"does not decode:\n{reason}", transform=row[1].transAxes, va="center", fontsize=9, color=_INK)


def _write_below(cell: Axes, lines: Sequence[str]) -> None:
    text = "\n".join(lines)
    cell.text(0, -0.02, text, transform=cell.transAxes, va="top", fontsize=8.5, linespacing=1.3, color=_INK)


def caption(drawn: DrawnView, steps: Steps, position: int) -> list[str]:
    """Describe the drawn parameters of one view of one image, in three lines, or four if there are more steps."""
    view = DrawnView(*(field[position] for field in drawn))
    area = 100 * view.crop_w * view.crop_h / (view.image_w * view.image_h)
    turn = f"{'flipped, ' if view.mirrored else ''}rotated {view.degrees:+.1f}°"
    blur = f"blur {view.blur_sigma_px:.2f} px" if view.blur_sigma_px > 0 else "no blur"
    erased = f"erased {view.erased_w:.0f} x {view.erased_h:.0f} px" if view.erased_w > 0 else "nothing erased"
    more = [f"gamma {view.gamma:.2f}"] * steps.gamma + [erased] * steps.erase
    return [
        f"crop {area:.0f} % at ({view.center_x / view.image_w:.2f}, {view.center_y / view.image_h:.2f}), "
        f"{view.crop_w:.0f} x {view.crop_h:.0f}",
        f"{turn}, {blur}",
        f"brightness {view.brightness:.2f}, contrast {view.contrast:.2f}",
        *([", ".join(more)] if more else []),
    ]
