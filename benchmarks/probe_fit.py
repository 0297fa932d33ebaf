"""How a probe shows films that are not square: what each way keeps of a disease, and what it tells of the film's shape.

The films are those of ChestX-ray14, whose release squashes each of them to 1024 x 1024 px. Its table has the size of
the original, so each image is stretched back to that shape before a way makes it square again.

Questions, answered by ridge regression on frozen features, cross-validated over patients in five folds:

pneumonia    or no finding; only pairs of the same view (AP or PA) are ranked, because the view alone tells the classes
             apart in part. A good way keeps this high for features of the image and low for those of its border.
shape        whether the film was wider than high or higher than wide: what a way tells of the film beside its content

Ways: those of `--probe_fit`; `mirrored`: pad, averaged with the mirror image; `black`: padded with black, to compare.
"""

import argparse
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.common import machine, table
from evaluation.results.scores import Estimate
from evaluation.scoring.scores import Predictions, auc_difference, score
from infra.arrays import Float32, Float64, Int64, UInt8
from infra.rng import permutation
from infra.storage.files import write_atomic

TABLE: Final = "Data_Entry_2017.csv"
FOLDS: Final = 5
RIDGE: Final = 1.0  # as a share of the mean similarity of a film with itself
BORDER: Final = 3  # of 32 pixels at each side, as in the control
SHAPED: Final = 0.05  # least |log(width / height)| of a film that is not square
PAD: Final = "pad"


class Films(NamedTuple):
    """The n films: gray levels (H, W), whether each shows pneumonia, its view, patient and log(width / height)."""

    images: list[UInt8]
    sick: Int64
    views: Int64
    patients: Int64
    shapes: Float64


class Question(NamedTuple):
    """The n films that a question is about: their numbers, 0 or 1, and the parts within which they are ranked."""

    name: str
    films: Int64
    classes: Int64
    parts: Int64


def read_films(root: Path, most: int | None, shorter_side_px: int) -> Films:
    """Read a random choice of the films with pneumonia or no finding, in the shape of their originals."""
    with (root / TABLE).open(newline="") as lines:
        header, *rows = csv.reader(lines)
    width_column = header.index("OriginalImage[Width")  # "OriginalImage[Width,Height]" is two columns
    known = [row for row in rows if "Pneumonia" in row[1] or row[1] == "No Finding"]
    there = [row for row in known if (root / "images" / row[0]).exists()]
    chosen = [there[number] for number in permutation(len(there), 0, "films")[:most]]
    sizes = np.array([[int(row[width_column]), int(row[width_column + 1])] for row in chosen])
    images = []
    for row, (width, height) in zip(chosen, sizes.tolist(), strict=True):
        scale = shorter_side_px / min(width, height)
        with Image.open(root / "images" / row[0]) as image:
            size = round(width * scale), round(height * scale)
            images.append(np.asarray(image.convert("L").resize(size, Image.Resampling.BICUBIC)))
    return Films(
        images,
        np.array(["Pneumonia" in row[1] for row in chosen]).astype(np.int64),
        np.array([row[header.index("View Position")] == "PA" for row in chosen]).astype(np.int64),
        np.unique([row[header.index("Patient ID")] for row in chosen], return_inverse=True)[1],
        np.log(sizes[:, 0] / sizes[:, 1]),
    )


def padded(film: UInt8, **how: Any) -> UInt8:
    """Return a film with pixels beside its shorter side, as `np.pad` is told."""
    missing = max(film.shape) - np.array(film.shape)
    return np.pad(film, [(side // 2, side - side // 2) for side in missing.tolist()], **how)


def center(film: UInt8) -> UInt8:
    """Return the center square of a film."""
    side = min(film.shape)
    top, left = ((size - side) // 2 for size in film.shape)
    return film[top : top + side, left : left + side]


WAYS: Final[dict[str, Callable[[UInt8], UInt8]]] = {
    PAD: lambda film: padded(film, mode="edge"),
    "squash": lambda film: film,
    "square": center,
    "mirrored": lambda film: padded(film, mode="edge"),
    "black": padded,
}


def squares(films: Films, way: str, size_px: int) -> Float32:
    """Return the films as squares (n, size, size), from 0 to 1."""
    images = (Image.fromarray(WAYS[way](film)) for film in films.images)
    resized = [np.asarray(image.resize((size_px, size_px), Image.Resampling.BOX), np.float32) for image in images]
    return np.stack(resized) / np.float32(255)


def features_of(films: Films, way: str, size_px: int, seeds: int) -> dict[str, list[Float32]]:
    """Return the features of all films, (n, D), one matrix for each seed."""
    pixels = squares(films, way, 32)
    if way == "mirrored":
        pixels = (pixels + pixels[:, :, ::-1]) / np.float32(2)
    inside = np.zeros((32, 32), np.bool_)
    inside[BORDER:-BORDER, BORDER:-BORDER] = True
    features = {"32 x 32 raw pixels": [pixels.reshape(len(pixels), -1)], "their border": [pixels[:, ~inside]]}
    if seeds:
        images = squares(films, way, size_px)
        features["untrained ResNet-18"] = [untrained(images, seed, mirrored=way == "mirrored") for seed in range(seeds)]
    return features


def untrained(images: Float32, seed: int, *, mirrored: bool) -> Float32:
    """Return the features of an untrained network."""
    import torch  # noqa: PLC0415 (takes longer than the rest without it)

    from ssl_core.model.encoder import ModelConfig, untrained_backbone  # noqa: PLC0415

    network = untrained_backbone(ModelConfig("resnet18"), seed).eval()
    batches = torch.from_numpy((images - images.mean()) / images.std())[:, None].split(32)  # type: ignore[no-untyped-call]
    with torch.inference_mode():
        parts = [network(batch) + (network(batch.flip(3)) if mirrored else 0) for batch in batches]
    features: Float32 = torch.cat(parts).numpy()
    return features


def questions(films: Films) -> list[Question]:
    """Return both questions."""
    everything, shaped = np.arange(len(films.sick)), np.flatnonzero(np.abs(films.shapes) > SHAPED)
    wide = (films.shapes[shaped] > 0).astype(np.int64)
    return [
        Question("pneumonia", everything, films.sick, films.views),
        Question("shape", shaped, wide, np.zeros(len(shaped), np.int64)),
    ]


def answer(question: Question, draws: Sequence[npt.NDArray[Any]], patients: Int64) -> Predictions:
    """Return out-of-fold scores of a ridge regression on each draw of features (N, D), ranked in fold and part."""
    fold = permutation(patients.max() + 1, 0, "folds")[patients[question.films]] % FOLDS
    parts = fold * 2 + question.parts
    scores = np.concatenate([ridge(values[question.films], question.classes, fold) for values in draws])
    count = len(draws)
    return Predictions(
        np.tile(question.classes, count),
        scores,
        scores > 0,
        np.tile(patients[question.films], count),
        (parts + 2 * FOLDS * np.arange(count)[:, None]).ravel(),
    )


def ridge(features: npt.NDArray[Any], classes: Int64, fold: Int64) -> Float64:
    """Return the out-of-fold scores (n,) in closed form."""
    scores: Float64 = np.empty(len(fold))
    for number in range(FOLDS):
        fitted = fold != number
        scaled = (features - features[fitted].mean(axis=0)) / np.maximum(features[fitted].std(axis=0), 1e-6)
        similar = (scaled @ scaled[fitted].T / scaled.shape[1]).astype(np.float64)
        targets = classes[fitted] - classes[fitted].mean()
        scores[~fitted] = similar[~fitted] @ np.linalg.solve(similar[fitted] + RIDGE * np.eye(fitted.sum()), targets)
    return scores


def measure(films: Films, size_px: int, seeds: int, resamples: int) -> Iterator[dict[str, Any]]:
    """Yield a record for each way, kind of features and question: its AUC, and how far it is above that of `pad`."""
    of_pad: dict[tuple[str, str], Predictions] = {}
    asked = questions(films)
    yield from (
        record(
            question, "", "width / height", answer(question, [films.shapes[:, None]], films.patients), None, resamples
        )
        for question in asked
    )
    for way in WAYS:
        for name, draws in features_of(films, way, size_px, seeds).items():
            for question in asked:
                ours = answer(question, draws, films.patients)
                of_pad.setdefault((question.name, name), ours)
                pad = None if way == PAD else of_pad[question.name, name]
                yield record(question, way, name, ours, pad, resamples)


def record(
    question: Question, way: str, features: str, ours: Predictions, pad: Predictions | None, resamples: int
) -> dict[str, Any]:
    """Describe one answer, with 95 % intervals over patients."""
    above: Estimate | None = None if pad is None else auc_difference(ours, pad, resamples=resamples, seed=0)
    return {
        "question": question.name,
        "features": features,
        "way": way,
        "films": len(question.films),
        "positive": int(question.classes.sum()),
        "auc": asdict(score(ours, resamples=resamples, seed=0).auc),
        "above_pad": None if above is None else asdict(above),
    }


def cells(item: dict[str, Any]) -> tuple[str, ...]:
    """Return the row of a record in the printed table, in percent and points."""
    auc, above = item["auc"], item["above_pad"]
    return (
        f"{item['question']}: {item['features']}",
        item["way"],
        f"{100 * auc['value']:.1f}",
        f"{100 * auc['low']:.1f}-{100 * auc['high']:.1f}" if auc["low"] is not None else "",
        "" if above is None else f"{100 * above['value']:+.1f}",
        "" if above is None else f"{100 * above['low']:+.1f} to {100 * above['high']:+.1f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="ChestX-ray14 as upstream ships it, or part of it")
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--films", type=int, help="a random choice of so many; all by default")
    parser.add_argument("--shorter_side_px", type=int, default=160, help="of the films in the shape of their originals")
    parser.add_argument("--size_px", type=int, default=96, help="of the network's input")
    parser.add_argument("--seeds", type=int, default=3, help="of the untrained network; 0 leaves it out")
    parser.add_argument("--resamples", type=int, default=1000, help="of the patients")
    options = parser.parse_args(arguments)
    films = read_films(options.root, options.films, options.shorter_side_px)
    records = list(measure(films, options.size_px, options.seeds, options.resamples))
    print(table(("question: features", "way", "AUC %", "95 %", "above pad", "95 %"), [cells(item) for item in records]))
    settings = {name: value for name, value in vars(options).items() if name not in ("root", "out")}
    content = {"settings": settings | {"ridge": RIDGE, "folds": FOLDS}, "machine": machine("numpy", "torch", "Pillow")}
    write_atomic(options.out, json.dumps(content | {"records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
