"""The exposure of one radiograph of a phantom: its pose before the plate, the device, the film curve."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, uniform_filter

from sharding.simulation.phantom import (
    Anatomy,
    Draws,
    Field,
    Matrix,
    Opacity,
    frontal,
    lateral,
    noise,
    stretched,
    vessels,
)

DEVICES = 8


def radiograph(
    seed: int,
    stream: str,
    patient: int,
    image: int,
    anatomy: Anatomy,
    opacities: tuple[Opacity, ...],
    projection: str,
    lines: int,
    size_px: int,
) -> npt.NDArray[np.uint8]:
    """Take one radiograph.

    Args:
        seed: the seed of all draws
        stream: the name of the dataset, which keys the draws
        patient: the patient's number
        image: the image's number among the patient's
        anatomy: the patient's anatomy
        opacities: the patches of pneumonia
        projection: PA, AP or lateral
        lines: the number of leads and catheters on the chest
        size_px: the shorter side, in pixels

    Returns:
        Gray levels (height, width); the longer side is up to 22 % longer.
    """
    draws = Draws(seed, f"{stream}-image", patient, image)
    portable = projection == "AP"
    longer_px = round(size_px * draws.between(1.0, 1.22))
    height, width = (longer_px, size_px) if projection == "lateral" else (size_px, longer_px)
    to_pixel = _pose(draws, height, width, portable)
    x, y = _coordinates(to_pixel, height, width)
    bends = noise(seed, f"{stream}-bends", patient, 0, 10, 5) + 0.4 * noise(
        seed, f"{stream}-bend", patient, image, 10, 5
    )
    x += 0.018 * stretched(bends[:5], height, width)
    y += 0.018 * stretched(bends[5:], height, width)

    coarse, fine = (noise(seed, f"{stream}-texture-{n}", patient, image, n, n) for n in (9, 20))
    texture = 0.6 * stretched(coarse, height, width) + 0.6 * stretched(fine, height, width)
    breath = draws.normal(-0.07 if portable else 0.02, 0.05)
    project = lateral if projection == "lateral" else frontal
    solid, lung, opacity = project(anatomy, breath, x, y, opacities, texture)
    tree = vessels(anatomy, Draws(seed, f"{stream}-vessels", patient), height, width, to_pixel)
    mesh = stretched(noise(seed, f"{stream}-mesh", patient, image, 40, 40), height, width)
    attenuation = solid + opacity - lung * (draws.normal(0.62, 0.05) - anatomy.vessels * tree - 0.05 * mesh)
    attenuation += _hardware(draws, lines, height, width, to_pixel)
    device = Draws(seed, f"{stream}-device", int(draws.between(0, DEVICES)))
    return _expose(attenuation, device, draws, noise(seed, f"{stream}-grain", patient, image, height, width))


def _pose(draws: Draws, height: int, width: int, portable: bool) -> Matrix:
    """Draw the patient's pose before the plate: the (2, 3) map from body to pixel coordinates."""
    angle = math.radians(draws.normal(0, 4.0 if portable else 2.5))
    unit_px = min(height, width) / 2 * draws.between(0.92, 1.30) * (1.03 if portable else 1.0)
    cos, sin = math.cos(angle) * unit_px, math.sin(angle) * unit_px
    shift_x, shift_y = draws.normal(0, 0.06) * unit_px, draws.normal(0.10, 0.07) * unit_px
    return np.array([[cos, -sin, width / 2 + shift_x], [sin, cos, height / 2 + shift_y]])


def _coordinates(to_pixel: Matrix, height: int, width: int) -> tuple[Field, Field]:
    inverse = np.linalg.inv(np.vstack([to_pixel, [0, 0, 1]])).tolist()
    columns, rows = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    x, y = (a * columns + b * rows + c for a, b, c in inverse[:2])
    return x, y


def _hardware(draws: Draws, lines: int, height: int, width: int, to_pixel: Matrix) -> Field:
    """Draw leads and catheters: thin bright arcs, some of which end in an electrode."""
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 24)
    for _ in range(lines):
        stops = np.array([[draws.between(-0.7, 0.7), draws.between(-0.9, 0.7), 1.0] for _ in range(3)])
        stops[0, 0] *= 1.6
        arc = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1) @ stops @ to_pixel.T  # (24, 2) pixels
        pen.line(arc.ravel().tolist(), fill=110, width=max(1, width // 160))
        if draws.chance(0.6):
            radius, (end_x, end_y) = max(1.0, width / 70), arc[-1].tolist()
            pen.ellipse([end_x - radius, end_y - radius, end_x + radius, end_y + radius], fill=200)
    return 0.35 / 255 * np.asarray(canvas, np.float32)


def _expose(attenuation: Field, device: Draws, draws: Draws, grain: Field) -> npt.NDArray[np.uint8]:
    """Turn attenuation into gray levels: blur, sharpening, grain that grows with density, film curve, marker."""
    height, width = attenuation.shape
    blur_px, sharpen = device.between(0.4, 0.8) * width / 160, device.between(0.0, 0.5)
    contrast, gamma = device.between(0.9, 1.9), device.between(0.7, 1.4)
    grain_size, vignette = device.between(0.02, 0.035), device.between(0.05, 0.2)

    field = gaussian_filter(attenuation, blur_px, truncate=2)
    field += sharpen * (field - uniform_filter(field, max(3, width // 16)))
    field += grain_size * draws.between(0.8, 1.25) * grain * (0.5 + np.maximum(field, 0))
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    level = (field - float(field.mean())) / (float(field.std()) + 1e-3) * (contrast * draws.between(0.65, 1.4))
    level += draws.normal(0, 0.55) + draws.normal(0, 0.12) * down + draws.normal(0, 0.12) * across
    level -= vignette * (across**2 + down**2)
    gray = (0.5 + 0.5 * np.tanh(0.6 * level)) ** (gamma * draws.between(0.8, 1.25))
    if device.chance(0.3):
        _mark(gray, draws)
    levels: npt.NDArray[np.uint8] = (gray * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return levels


def _mark(gray: Field, draws: Draws) -> None:
    """Write the side marker, a letter L, into the corner at the patient's left."""
    height, width = max(5, gray.shape[1] // 22), max(4, gray.shape[1] // 30)
    top, left = int(draws.between(2, 2 * height)), gray.shape[1] - int(draws.between(width + 2, 3 * width))
    stroke = max(1, height // 5)
    gray[top : top + height, left : left + stroke] = 0.95
    gray[top + height - stroke : top + height, left : left + width] = 0.95
