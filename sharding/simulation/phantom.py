"""A chest phantom: simple solids whose sum resembles a chest radiograph. It shows no real person's anatomy.

A patient is a set of shape factors. A projection sums, at each pixel, the paths through body, air, bone and heart,
all of them simple solids, and through the pneumonia inside the lungs; `sharding.simulation.exposure` turns the sum
into gray levels. All draws come from `infra.rng`: an image is a pure function of (seed, stream, patient, study, image).

Lengths are in half chest frames: the body's midline is x = 0, the lungs reach from y = -0.8 to about 0.5. In a frontal
projection x grows to the patient's left, in a lateral one to the back; y grows downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from infra import rng

Field = npt.NDArray[np.floating[Any]]  # always float32, which numpy keeps in operations with Python's numbers
Matrix = npt.NDArray[np.float64]


class Draws:
    """Random numbers for one purpose, drawn one after another from a keyed stream."""

    def __init__(self, seed: int, stream: str, item: int, counter: int = 0, count: int = 256) -> None:
        self._values = iter(rng.uniform(seed, stream, np.array([item], np.uint64), counter, count)[0].tolist())

    def between(self, low: float, high: float) -> float:
        """Draw uniformly between two numbers."""
        return low + (high - low) * float(next(self._values))

    def normal(self, mean: float, deviation: float) -> float:
        """Draw from a bell curve that ends three deviations from its mean (the sum of three uniform numbers)."""
        return mean + deviation * 2 * sum(self.between(-0.5, 0.5) for _ in range(3))

    def chance(self, probability: float) -> bool:
        """Draw true with a probability."""
        return self.between(0, 1) < probability


def noise(seed: int, stream: str, item: int, counter: int, height: int, width: int) -> Field:
    """Draw a (height, width) field of unit variance: the four bytes of a word summed, close to a normal number."""
    words = rng.draw_words(seed, stream, np.array([item], np.uint64), counter, height * width)[0]
    total = words.view(np.uint8).reshape(height, width, 4).sum(axis=2, dtype=np.int32)
    values: Field = ((total - 510) / 147.8).astype(np.float32)
    return values


def stretched(cells: Field, height: int, width: int) -> Field:
    """Stretch a small grid of numbers smoothly over an image."""
    return np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC), np.float32)


@dataclass(frozen=True)
class Anatomy:
    """The shape of one patient's chest: lengths in half frames, ratios without unit."""

    sex: str
    age: int
    width: float
    height: float
    depth: float
    fat: float
    heart_ratio: float
    heart_tilt: float
    mediastinum: float
    aorta: float
    domes: tuple[float, float]
    rib_pitch: float
    rib_phase: float
    rib_slope: float
    rib_strength: float
    clavicle_slope: float
    spine_bend: float
    breast: float
    vessels: float


def draw_anatomy(seed: int, stream: str, patient: int) -> Anatomy:
    """Draw a patient: women are a little smaller; hearts and aortas grow and bones fade with age."""
    draws = Draws(seed, f"{stream}-anatomy", patient)
    female = draws.chance(0.45)
    age = round(min(90.0, max(18.0, draws.normal(58, 17))))
    years = (age - 55) / 35
    return Anatomy(
        sex="Female" if female else "Male",
        age=age,
        width=draws.normal(0.72 if female else 0.77, 0.04),
        height=draws.normal(0.98 if female else 1.04, 0.06),
        depth=draws.normal(0.66, 0.05) + 0.03 * years,
        fat=abs(draws.normal(0.12, 0.06)),
        heart_ratio=draws.normal(0.46 + 0.03 * years, 0.045),
        heart_tilt=draws.normal(0.6, 0.15),
        mediastinum=draws.normal(0.115 + 0.012 * years, 0.014),
        aorta=max(0.0, draws.normal(0.05 + 0.03 * years, 0.02)),
        domes=(draws.normal(0.20, 0.05), draws.normal(0.17, 0.05)),
        rib_pitch=draws.normal(0.165, 0.012),
        rib_phase=draws.between(0, 1),
        rib_slope=draws.normal(0.28, 0.08),
        rib_strength=draws.normal(0.16 - 0.03 * years, 0.025),
        clavicle_slope=draws.normal(-0.12, 0.10),
        spine_bend=draws.normal(0, 0.025),
        breast=abs(draws.normal(0.16, 0.08)) if female else 0.0,
        vessels=draws.normal(0.16, 0.04),
    )


@dataclass(frozen=True)
class Opacity:
    """A patch of pneumonia: its position in its lung (0 to 1 each), size, density and streaks."""

    side: int
    along: float
    across: float
    depth: float
    radius: float
    stretch: float
    angle: float
    strength: float
    streaks: float


def draw_opacities(seed: int, stream: str, patient: int, study: int, viral: bool) -> tuple[Opacity, ...]:
    """Draw the pneumonia of one study: a few dense patches, or (viral) more, fainter, streaky and on both sides."""
    draws = Draws(seed, f"{stream}-opacity", patient, study)
    count = 4 + int(draws.between(0, 4)) if viral else 2 + int(draws.between(0, 3))
    first = 1 if draws.chance(0.5) else -1
    bilateral = viral or draws.chance(0.5)
    severity = draws.between(0.8, 1.2)
    return tuple(
        Opacity(
            side=-first if bilateral and n % 2 else first,
            along=draws.between(0.15, 0.92),
            across=draws.between(0.15, 0.85),
            depth=draws.between(-0.6, 0.8),
            radius=draws.between(0.16, 0.34),
            stretch=draws.between(0.6, 1.6),
            angle=draws.between(0, math.pi),
            strength=severity * (draws.between(0.17, 0.28) if viral else draws.between(0.20, 0.36)),
            streaks=draws.between(1.6, 2.2) if viral else draws.between(1.0, 1.8),
        )
        for n in range(count)
    )


def frontal(
    anatomy: Anatomy, breath: float, x: Field, y: Field, opacities: Sequence[Opacity], texture: Field
) -> tuple[Field, Field, Field]:
    """Project from the front or the back.

    Returns:
        The attenuation of the solids, the air (0 to 1), and the attenuation of the opacities, each (height, width).
    """
    x = x - anatomy.spine_bend * np.cos(2 * y)
    ax = np.abs(x)
    right = x < 0  # the image's left half is the patient's right
    width, top, base = anatomy.width, -0.80 * anatomy.height, 0.42 * anatomy.height + breath

    # The body: shoulders slope away from the neck; fat adds to depth and width.
    trunk = width + 0.12 + anatomy.fat + 0.45 * np.clip(-0.35 - y, 0, 0.5) - ax
    shoulders = y - top + 0.16 - 0.18 * np.minimum(ax, 1) + 0.6 * np.clip(0.24 - ax, 0, 1)
    soft = (0.9 * anatomy.depth + anatomy.fat) * _round(np.minimum(trunk, shoulders), 0.45)

    # The lungs: inside the cage, next to the mediastinum (with the aorta's knob), above the domes of the diaphragm.
    cage = 0.72 - 0.72 * np.sqrt((x / width) ** 2 + (np.minimum(y - 0.15, 0) / (0.15 - top)) ** 2)
    middle = anatomy.mediastinum + 0.05 * np.clip(-0.3 - y, 0, 0.4) + 0.10 * np.clip(y, 0, 1)
    middle = middle + anatomy.aorta * np.exp(-np.square((y + 0.36) * 8)) * ~right
    dome = np.where(right, np.float32(anatomy.domes[0] + 0.03), np.float32(anatomy.domes[1]))
    floor = base - dome * (1 - np.square(2 * ax / width - 1))
    lung = _round(np.minimum(np.minimum(cage, ax - middle), floor - y), 0.22)

    # The heart reaches `heart_ratio` of the cage's width, two thirds of it on the patient's left.
    reach = anatomy.heart_ratio * 2 * width
    heart_y = base - anatomy.domes[1] - 0.10
    heart = _ellipsoid(x - 0.16 * reach, y - heart_y, 0.56 * reach, 0.40 * reach, anatomy.heart_tilt)
    lung = lung * (1 - 0.72 * np.minimum(1, 1.5 * heart))
    belly = _edge(y - floor, 8)

    # Bones: the spine's vertebrae, the clavicles, and ribs as bands of a curved coordinate.
    vertebra = 0.75 + 0.25 * np.cos((y + anatomy.rib_phase) * (math.tau / 0.13))
    spine = _edge(0.085 - ax, 30) * vertebra * (1 - 0.5 * belly)
    curve = y - top - 0.20 - anatomy.clavicle_slope * ax - 0.10 * np.sin(7 * ax)
    clavicles = _bone(curve, 0.035) * _edge(ax - 0.08, 20) * _edge(0.78 - ax, 8)
    pitch, phase = anatomy.rib_pitch, anatomy.rib_phase
    behind = _bones(y + 0.30 * ax - (1.0 + anatomy.rib_slope) * ax * ax, pitch, phase, 0.030)
    before = _bones(y - 0.85 * ax + 0.35 * ax * ax, pitch, 3 * phase, 0.034) * _edge(ax - 0.45 * width, 5)
    inside = _edge(cage + 0.035, 25) * _edge(base + 0.12 - y, 8) * _edge(ax - 0.06, 20)
    ribs = inside * (behind + 0.6 * before * _edge(y + 0.45, 5))

    solid = soft + 0.30 * _edge(middle - ax, 10) + 0.34 * heart + 0.30 * belly * _edge(trunk, 6)
    solid += 0.22 * spine + anatomy.rib_strength * ribs + 0.24 * clavicles
    if anatomy.breast:
        solid += anatomy.breast * _ellipsoid(ax - 0.46, y - 0.22, 0.34, 0.33, 0.3)
    offsets = []
    for opacity in opacities:
        outer = 0.80 * width * min(1.0, 0.55 + 0.6 * opacity.along)
        center_x = opacity.side * (0.17 + opacity.across * (outer - 0.17))
        center_y = top + 0.10 + opacity.along * (base - top - 0.28)
        offsets.append((x - center_x, y - center_y))
    return solid, lung, _patches(lung, offsets, opacities, texture)


def lateral(
    anatomy: Anatomy, breath: float, x: Field, y: Field, opacities: Sequence[Opacity], texture: Field
) -> tuple[Field, Field, Field]:
    """Project from the side; returns the same three arrays as `frontal`."""
    top, base, half = -0.78 * anatomy.height, 0.50 * anatomy.height + breath, anatomy.depth
    front = x + 0.12 * y + half  # the sternum leans forward and down
    behind = half - x + 0.10 * np.cos(2 * y)
    inside = np.minimum(front, behind)
    neck = y - top + 0.10 - 0.30 * np.abs(x)
    soft = (0.75 + anatomy.fat) * _round(np.minimum(inside + 0.08 + anatomy.fat, neck), 0.40)
    arch = half - half * np.sqrt((x / half) ** 2 + (np.minimum(y, 0) / top) ** 2)
    floor = base - anatomy.domes[0] + 0.35 * np.clip(x, -1, 1) + 0.45 * np.square(x)
    lung = _round(np.minimum(np.minimum(arch, inside), floor - y), 0.22)
    reach = anatomy.heart_ratio * 2 * anatomy.width
    heart = _ellipsoid(x + 0.22, y - base + 0.36, 0.42 * reach, 0.52 * reach, 0.6)
    lung = lung * (1 - 0.6 * np.minimum(1, 1.5 * heart))
    belly = _edge(y - floor, 8) * _edge(inside + anatomy.fat, 12)
    vertebra = 0.6 + 0.4 * np.cos((y + anatomy.rib_phase) * (math.tau / 0.14))
    spine = _edge(0.10 - np.abs(x - half + 0.14 - 0.06 * np.cos(2 * y)), 25) * vertebra
    ribs = _bones(y + 0.9 * x - 0.4 * x * x, 0.8 * anatomy.rib_pitch, anatomy.rib_phase, 0.024) * _edge(arch + 0.05, 20)
    sternum = _bone(front - 0.02, 0.035) * _edge(0.35 - np.abs(y + 0.1), 10)
    solid = soft + 0.30 * heart + 0.32 * belly + 0.30 * spine + 0.18 * sternum + 0.8 * anatomy.rib_strength * ribs
    solid += 0.5 * np.clip(-0.45 - y - 0.3 * np.square(x), 0, 1)  # the shoulders
    offsets = [
        (x - 0.6 * half * opacity.depth, y - top - 0.15 - opacity.along * (base - top - 0.35)) for opacity in opacities
    ]
    return solid, lung, _patches(lung, offsets, opacities, texture)


def vessels(anatomy: Anatomy, draws: Draws, height: int, width: int, to_pixel: Matrix) -> Field:
    """Draw the vessels around both hila (0 to 1) as straight twigs that fork and thin out."""
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    unit_px = float(np.hypot(to_pixel[0, 0], to_pixel[0, 1]))
    for side in (-1, 1):
        hilum = (side * (anatomy.mediastinum + 0.06), 0.02)
        twigs = [(hilum, draws.between(-0.2, 0.2) + 0.62 * k, 0.25, 3) for k in range(-2, 3)]
        while twigs:
            start, angle, length, level = twigs.pop()
            end = (start[0] + side * length * math.cos(angle), start[1] + length * math.sin(angle))
            line = np.array([[*start, 1.0], [*end, 1.0]]) @ to_pixel.T  # (2, 2) pixels
            pen.line(line.ravel().tolist(), fill=60 + 60 * level, width=max(1, round(0.011 * level * unit_px)))
            fork = draws.between(0.2, 0.5)
            if level > 1:
                twigs += [(end, angle + turn, 0.75 * length, level - 1) for turn in (fork, -fork)]
    soft: Field = gaussian_filter(np.asarray(canvas, np.float32) / 255, max(0.6, 0.008 * unit_px), truncate=2)
    return soft


def _round(distance: Field, length: float) -> Field:
    """Return a path through a round solid, which rises from 0 at the surface to 1 at the depth `length`."""
    path: Field = np.sqrt(np.clip(distance / length, 0, 1))
    return path


def _edge(distance: Field, steepness: float) -> Field:
    """Return a level that rises linearly from 0 at the surface to 1."""
    level: Field = np.clip(distance * steepness, 0, 1)
    return level


def _bone(distance: Field, half_width: float) -> Field:
    """Return a hollow bone's profile across its axis: two bright rims around a darker core."""
    q = np.square(distance / half_width)
    profile: Field = np.clip(1.6 - q, 0, 1) * (0.6 + 0.4 * np.minimum(q, 1))
    return profile


def _bones(coordinate: Field, pitch: float, phase: float, half_width: float) -> Field:
    """Repeat a bone every `pitch` of the coordinate."""
    return _bone(((coordinate / pitch + phase) % 1 - 0.5) * pitch, half_width)


def _turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    cos, sin = math.cos(angle), math.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _ellipsoid(x: Field, y: Field, radius_x: float, radius_y: float, angle: float) -> Field:
    u, v = _turned(x, y, angle)
    path: Field = np.sqrt(np.maximum(0, 1 - np.square(u / radius_x) - np.square(v / radius_y)))
    return path


def _patches(
    lung: Field, offsets: Sequence[tuple[Field, Field]], opacities: Sequence[Opacity], texture: Field
) -> Field:
    """Sum the opacities: soft-edged, broken up by `texture`, and only inside the lungs."""
    total: Field = np.zeros_like(lung)
    for opacity, (x, y) in zip(opacities, offsets, strict=True):
        u, v = _turned(x, y, opacity.angle)
        q = np.square(u / opacity.radius) + np.square(v * (opacity.stretch / opacity.radius)) + 0.5 * texture
        patch = opacity.strength / (1 + np.exp(np.minimum(4 * q - 3.2, 30)))
        total += patch * np.maximum(0, 0.3 + opacity.streaks * texture)
    total *= np.minimum(1, 1.6 * lung)
    return total
