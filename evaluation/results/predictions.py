"""`predictions.csv`: what each row of a probe's table says about each test image, for other programs and for `compare`.

A probe that scores many images has millions of such lines, so a file of more than 100,000 lines is compressed.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, TextIO

import numpy as np

from evaluation.results.datasets import TaskKey
from evaluation.results.results import PredictionsFile
from infra.arrays import Float64, Int64, UInt64
from infra.errors import UserError, require
from infra.storage.files import atomic_file, regular_size, sha256_file

COLUMNS: Final = (
    "set", "question", "preset", "features", "draw",
    "part", "fold", "key", "patient", "group", "label", "score", "threshold",
)  # fmt: skip
_KEY_CELLS: Final = 5  # that identify the row of the table
PLAIN: Final = "predictions.csv"
_COMPRESSED: Final = "predictions.csv.gz"
_MOST_PLAIN_ROWS: Final = 100_000


class FeaturesKey(NamedTuple):
    """Identifies the predictions of one draw of one row of the table.

    Attributes:
        task: the row's task
        question: the label that is asked for, one of several of the task; empty if the task has only this question
        features: the row's features
        draw: which draw of the weights, from 1
    """

    task: TaskKey
    question: str
    features: str
    draw: int

    @property
    def cells(self) -> tuple[str, str, str, str, int]:
        """The first cells of its lines; the set is named without the question, which has a column of its own."""
        dataset, preset = self.task
        return (dataset.removesuffix(_behind(self.question)), self.question, preset, self.features, self.draw)


def _behind(question: str) -> str:
    """Return what the label of a task with several questions has behind the name of the set."""
    return f": {question}" if question else ""


@dataclass(frozen=True)
class ImagePredictions:
    """What one feature set says about the m test images of a task, round after round.

    Attributes:
        crossed: whether several test parts are tested in turn, each by its own classifier
        folds: (m,) number of the test part, from 1
        keys: (m,) key of each image in its set
        patients: (m,) identities of the patients, as in the index of the shards
        groups: (m,) one number for all patients that are resampled together: the lowest of their identities
        labels: (m,) 1 positive, 0 negative
        scores: (m,) probability of the positive class
        thresholds: (m,) a score above it is called positive
    """

    crossed: bool
    folds: Int64
    keys: Sequence[str]
    patients: UInt64
    groups: UInt64
    labels: Int64
    scores: Float64
    thresholds: Float64


def write_predictions(run: Path, predictions: Iterable[tuple[FeaturesKey, ImagePredictions]]) -> PredictionsFile:
    """Write `run/predictions.csv`, or `run/predictions.csv.gz` if it has more than 100,000 lines, atomically.

    Equal predictions give equal bytes.

    Raises:
        UserError: if the disk is full or not writable
    """
    listed = list(predictions)
    rows = sum(len(item.keys) for _, item in listed)
    name, other = (PLAIN, _COMPRESSED) if rows <= _MOST_PLAIN_ROWS else (_COMPRESSED, PLAIN)
    with atomic_file(run / name) as file, _text(file, compressed=name == _COMPRESSED) as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for key, item in listed:
            writer.writerows(_lines(key, item))
    (run / other).unlink(missing_ok=True)
    return PredictionsFile(name, rows, sha256_file(run / name))


@contextmanager
def _text(file: BinaryIO, *, compressed: bool) -> Iterator[TextIO]:
    """Yield a text file that writes into a binary one and leaves it open."""
    if not compressed:
        plain = io.TextIOWrapper(file, "utf-8", newline="")
        yield plain
        plain.detach()
        return
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,  # the same bytes at any time
        io.TextIOWrapper(packed, "utf-8", newline="") as text,
    ):
        yield text


def _lines(key: FeaturesKey, item: ImagePredictions) -> Iterator[tuple[object, ...]]:
    """Yield the cells of each image in the order of COLUMNS; a number keeps all of its digits."""
    start = map(repeat, (*key.cells, "cross-validation" if item.crossed else "test"))
    return zip(
        *start,
        item.folds.tolist(),
        item.keys,
        map("{:016x}".format, item.patients.tolist()),
        map("{:016x}".format, item.groups.tolist()),
        item.labels.tolist(),
        item.scores.tolist(),
        item.thresholds.tolist(),
        strict=False,  # the first ones have no end
    )


def read_predictions(run: Path, file: PredictionsFile, wanted: set[FeaturesKey]) -> dict[FeaturesKey, ImagePredictions]:
    """Read some of the predictions of a run.

    Args:
        run: the run folder
        file: the record of the file in the run's `results.json`
        wanted: which predictions to keep

    Returns:
        The predictions that the file holds, in its order.

    Raises:
        UserError: if the file is missing, is not the one that belongs to `results.json`, or cannot be read.
    """
    require(file.name in (PLAIN, _COMPRESSED), f"{run} names its predictions {file.name!r}; probe the run again")
    path = run / file.name
    try:
        regular_size(path)
        require(
            sha256_file(path) == file.sha256,
            f"{path} is not the file that {run / 'results.json'} belongs to; probe the run again",
        )
        with _opened(path) as text:
            return _parse(text, path, file.rows, wanted)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist, but {run / 'results.json'} names it; probe the run again") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({reason}); probe the run again") from error


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _parse(text: TextIO, path: Path, rows: int, wanted: set[FeaturesKey]) -> dict[FeaturesKey, ImagePredictions]:
    """Return the wanted predictions; raises ValueError or csv.Error for what `write_predictions` does not write."""
    reader = csv.reader(text, strict=True)
    if tuple(next(reader, ())) != COLUMNS:
        raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
    found: dict[FeaturesKey, list[list[str]]] = {}
    for number, cells in enumerate(reader, start=1):
        if number > rows or len(cells) != len(COLUMNS):
            raise ValueError(f"line {number + 1} is not one of {rows} lines with {len(COLUMNS)} cells")
        labeled_set, question, preset, features, draw = cells[:_KEY_CELLS]
        key = FeaturesKey(TaskKey(labeled_set + _behind(question), preset), question, features, int(draw))
        if key in wanted:
            found.setdefault(key, []).append(cells[_KEY_CELLS:])
    return {key: _predictions(lines) for key, lines in found.items()}


def _predictions(lines: list[list[str]]) -> ImagePredictions:
    parts, folds, keys, patients, groups, labels, scores, thresholds = zip(*lines, strict=True)
    item = ImagePredictions(
        crossed=parts[0] == "cross-validation",
        folds=np.array(folds, np.int64),
        keys=keys,
        patients=np.array([int(text, 16) for text in patients], np.uint64),
        groups=np.array([int(text, 16) for text in groups], np.uint64),
        labels=np.array(labels, np.int64),
        scores=np.array(scores, np.float64),
        thresholds=np.array(thresholds, np.float64),
    )
    if not (np.isin(item.labels, (0, 1)).all() and np.isfinite(item.scores).all()):
        raise ValueError("a label is neither 0 nor 1, or a score is not finite")
    return item
