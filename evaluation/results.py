"""`results.json` of a run, the paper's Table III, and both as one table."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from evaluation.scores import Scores
from infra.errors import UserError
from infra.files import write_atomic

NAME: Final = "results.json"
VERSION: Final = 1

PAPER: Final = (
    "Gazda, Gazda, Plavka, Drotar 2021: Self-supervised deep convolutional neural network for chest X-ray "
    "classification, Table III"
)

# Percent, by dataset and fraction of CheXpert used in pretraining, as printed: ACC, AUC, SEN, SPE, F1.
TABLE_III: Final[dict[str, dict[int, tuple[float, float, float, float, float]]]] = {
    "cell": {
        1: (85.6, 96.6, 99.5, 62.4, 76.4),
        10: (86.9, 96.9, 99.2, 66.2, 79.1),
        100: (91.5, 97.7, 98.7, 79.5, 87.5),
    },
    "c19-cohen": {
        1: (84.9, 89.2, 90.6, 73.6, 76.5),
        10: (81.8, 91.5, 85.8, 73.6, 72.9),
        100: (81.1, 88.2, 83.0, 77.4, 73.2),
    },
    "covidgr": {
        1: (79.5, 86.6, 83.5, 75.6, 78.8),
        10: (77.8, 86.0, 80.0, 75.6, 77.4),
        100: (78.4, 87.1, 83.5, 73.3, 77.3),
    },
    "chestxray14": {
        1: (71.5, 79.1, 72.8, 71.4, 83.0),
        10: (71.2, 78.1, 72.0, 71.2, 82.9),
        100: (71.4, 78.4, 71.3, 71.5, 83.0),
    },
}

SIMULATED_NOTE: Final = (
    "Simulated radiographs are drawn by a program. Scores on them show that the machinery works and prove nothing "
    "about medicine; the paper's figures are of real patients and are not set beside them."
)
PAPER_NOTE: Final = (
    "The paper's row is of a wide ResNet-50-2, 100 epochs on 224,316 CheXpert images, and of its own choice of target "
    "images; it compares with a row of ours only as far as these agree."
)
F1_NOTE: Final = (
    "The paper's F1 stands under F1(healthy), because it is the F1 of the negative class: on Cell, SEN 98.7 and SPE "
    "79.5 of 390 and 234 test images give 87.5 for the healthy and 93.5 for the diseased."
)
CONVERGENCE_NOTE: Final = (
    "Some fits ended at the limit of iterations before they converged (scikit-learn's default limit on unscaled "
    "features, as in the paper): their scores are what such a probe gives, not the optimum; see the last column."
)


@dataclass(frozen=True)
class Part:
    """How many images and patients a part of a dataset holds, and of which class."""

    images: int
    patients: int
    positive: int
    negative: int


@dataclass(frozen=True)
class Dataset:
    """What was probed. The last two count test images and test patients seen, unlabelled, in pretraining.

    They are None when the shards of the pretraining are not there to compare with.
    """

    label: str
    name: str
    folder: str
    identity: str
    simulated: bool
    positive: str
    negative: str
    split: str
    development: Part
    test: Part
    excluded: dict[str, int]
    shared_patients: int
    pretrained_images: int | None
    pretrained_patients: int | None


@dataclass(frozen=True)
class Row:
    """One feature set on one dataset: C by validation AUC, then one fit scored once on the test part."""

    dataset: str
    features: str
    kind: Literal["checkpoint", "untrained", "pixels"]
    epoch: float | None
    step: int | None
    size: int
    c: float
    validation_auc: float
    scores: Scores
    fits: int
    unconverged: int
    final_converged: bool


@dataclass(frozen=True)
class Results:
    """The content of `results.json`."""

    version: int
    sternum: str
    command: str
    config: dict[str, Any]
    protocol: dict[str, Any]
    datasets: list[Dataset]
    rows: list[Row]
    paper: dict[str, Any]
    timing: dict[str, float]
    notes: list[str]


def write_results(run: Path, results: Results) -> None:
    """Write `run/results.json` atomically."""
    write_atomic(run / NAME, msgspec.json.format(msgspec.json.encode(results), indent=1))


def read_results(run: Path) -> Results | None:
    """Read `run/results.json`; None where the run has not been probed, UserError when it is not one of ours."""
    path = run / NAME
    if not path.exists():
        return None
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; probe the run again") from error
    if results.version != VERSION:
        raise UserError(f"{path} has version {results.version}, this Sternum reads {VERSION}; probe the run again")
    return results


def paper_rows(datasets: Sequence[Dataset]) -> dict[str, Any]:
    """Return what Table III says of the real ones among these datasets."""
    names = ("acc", "auc", "sen", "spe", "f1")
    tables = {
        dataset.label: {
            f"{fraction}%": dict(zip(names, row, strict=True)) for fraction, row in TABLE_III[dataset.name].items()
        }
        for dataset in datasets
        if dataset.name in TABLE_III and not dataset.simulated
    }
    return {"source": PAPER, "unit": "percent", "table_iii": tables} if tables else {}


def notes_on(datasets: Sequence[Dataset], rows: Sequence[Row]) -> list[str]:
    """Return what a reader has to know before believing the table."""
    notes = [SIMULATED_NOTE] if any(dataset.simulated for dataset in datasets) else []
    notes += [PAPER_NOTE, F1_NOTE] if paper_rows(datasets) else []
    notes += [CONVERGENCE_NOTE] if any(row.unconverged or not row.final_converged for row in rows) else []
    for dataset in datasets:
        if dataset.shared_patients:
            notes.append(
                f"{dataset.label}: {dataset.shared_patients} patients are in both parts of its official split."
            )
        if dataset.pretrained_images is None:
            notes.append(
                f"{dataset.label}: whether its test images were in the pretraining is not known, since the shards of "
                "the pretraining are not where they were."
            )
        if dataset.pretrained_images or dataset.pretrained_patients:
            notes.append(
                f"{dataset.label}: {dataset.pretrained_images} test images and {dataset.pretrained_patients} test "
                "patients were in the pretraining (unlabelled), which may flatter the checkpoints."
            )
    return notes


HEADER: Final = ("dataset", "features", "C", "ACC", "AUC", "95 %", "SEN", "SPE", "F1", "F1(healthy)", "not converged")


def table(datasets: Sequence[Dataset], rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return the cells below HEADER, scores in percent: per dataset its rows, then the paper's where comparable."""
    cells: list[tuple[str, ...]] = []
    for dataset in datasets:
        cells += [_cells(row) for row in rows if row.dataset == dataset.label]
        if not dataset.simulated and dataset.name in TABLE_III:
            acc, auc, sen, spe, f1 = (f"{value:.1f}" for value in TABLE_III[dataset.name][100])
            cells.append((dataset.label, "paper, 100 % of CheXpert", "", acc, auc, "", sen, spe, "", f1, ""))
    return cells


def _cells(row: Row) -> tuple[str, ...]:
    scores = row.scores
    interval = (
        ""
        if scores.auc_low is None or scores.auc_high is None
        else (f"{100 * scores.auc_low:.1f}-{100 * scores.auc_high:.1f}")
    )
    values = [f"{100 * value:.1f}" for value in (scores.acc, scores.auc, scores.sen, scores.spe, scores.f1)]
    return (
        row.dataset, row.features, f"{row.c:g}", values[0], values[1], interval, *values[2:],
        f"{100 * scores.f1_negative:.1f}",
        f"{row.unconverged + (not row.final_converged)} of {row.fits + 1}",
    )  # fmt: skip


def markdown(header: Sequence[str], cells: Sequence[Sequence[str]], text_columns: int = 2) -> str:
    """Lay cells out as a Markdown table whose columns line up; the first columns to the left, numbers to the right."""
    widths = [max(3, *(len(row[column]) for row in [header, *cells])) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if column < text_columns else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if column < text_columns else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *(line(row) for row in cells)])


def describe(dataset: Dataset) -> str:
    """Return one line on a dataset's parts."""
    parts = "; ".join(
        f"{name} {part.images} images of {part.patients} patients ({part.positive} {dataset.positive} / "
        f"{part.negative} {dataset.negative})"
        for name, part in (("development", dataset.development), ("test", dataset.test))
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in dataset.excluded.items() if count)
    return f"{dataset.label}: {dataset.split} split; {parts}" + (f"; left out: {left_out}" if left_out else "")
