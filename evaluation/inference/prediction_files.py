"""Predictions as CSV and JSON."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Final

from evaluation.inference.images import ImageRecord
from evaluation.inference.predict import Predictions
from evaluation.inference.probes import Answer, Likeness
from infra.storage.json_files import encode_json

WARNING: Final = (
    "Sternum is not a medical device. These scores are for research; do not use them to examine or treat anybody."
)
COLUMNS: Final = (
    "image", "task", "class", "score", "threshold", "is_positive", "probability", "distance", "distance_quantile",
    "note",
)  # fmt: skip


def as_csv(predictions: Predictions) -> str:
    """Return a line for each image and question; a refused file has one line with the reason and no score."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_lines(predictions))
    blanks = [""] * (len(COLUMNS) - 2)
    writer.writerows([item.path, *blanks, f"refused: {item.reason}"] for item in predictions.refused)
    return text.getvalue()


def _lines(predictions: Predictions) -> Iterator[list[object]]:
    for number, record in enumerate(predictions.records):
        distance, quantile, note = _likeness_of(predictions.likeness, number)
        for answer in predictions.answers:
            probability = None if answer.probability is None else float(answer.probability[number])
            yield [
                name_of(record),
                answer.probe.task,
                answer.probe.positive,
                float(answer.score[number]),
                answer.threshold,
                int(answer.is_positive[number]),
                probability,
                distance,
                quantile,
                note,
            ]


def as_json(predictions: Predictions) -> bytes:
    """Return the same as JSON, with the scores of the single classifiers, the probe, and the warning."""
    first = predictions.probe.first
    return encode_json(
        {
            "warning": WARNING,
            "run": str(predictions.probe.run),
            "probe": {
                name: value for name, value in asdict(first).items() if name not in ("question", "positive", "negative")
            },
            "images": [_image(predictions, number) for number in range(len(predictions.records))],
            "refused": [asdict(item) for item in predictions.refused],
        }
    )


def _image(predictions: Predictions, number: int) -> dict[str, Any]:
    record = predictions.records[number]
    distance, quantile, note = _likeness_of(predictions.likeness, number)
    return {
        "image": name_of(record),
        "sha256": record.sha256,
        "distance": distance,
        "distance_quantile": quantile,
        "note": note,
        "answers": [_answer(answer, number) for answer in predictions.answers],
    }


def _answer(answer: Answer, number: int) -> dict[str, Any]:
    return {
        "class": answer.probe.positive,
        "negative": answer.probe.negative,
        "score": float(answer.score[number]),
        "of_classifiers": answer.of_classifiers[number].tolist(),
        "threshold": answer.threshold,
        "is_positive": bool(answer.is_positive[number]),
        "probability": None if answer.probability is None else float(answer.probability[number]),
    }


def _likeness_of(likeness: Likeness | None, number: int) -> tuple[float | None, float | None, str]:
    if likeness is None:
        return None, None, ""
    quantile = float(likeness.quantile[number])
    return float(likeness.distance[number]), None if math.isnan(quantile) else quantile, likeness.notes[number]


def name_of(record: ImageRecord) -> str:
    """Return what names an image for the user: its path, or its key in its set."""
    return record.path or record.key
