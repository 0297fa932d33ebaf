"""Notes on controls: what those of labels and parts show, and why one is missing."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from evaluation.results.datasets import Dataset, TaskKey
from evaluation.results.results import Results
from evaluation.results.rows import ProbeResult, Shift
from evaluation.results.scores import Estimate

LEAKS: Final = {
    "shuffled": "code reads labels of the test part",
    "shuffled_over_all": "patients or copies of images are in both parts",
}


def shuffled_notes(dataset: Dataset, rows: Sequence[ProbeResult]) -> Iterator[str]:
    """Yield a note on whether a probe fitted to shuffled labels scores at chance level."""
    for row in rows:
        if row.kind in LEAKS:
            auc = row.scores.auc
            neighbors = f"; {row.knn_auc:.3f} by nearest neighbors" if row.kind == "shuffled_over_all" else ""
            yield (
                f"{dataset.label}, {dataset.preset}, {row.features}: AUC {auc.value:.3f}"
                f"{compare_with_chance(auc, LEAKS[row.kind])}{neighbors}."
            )


def compare_with_chance(auc: Estimate, otherwise: str) -> str:
    """Return whether 0.5 is within the interval of an AUC, and what it means `otherwise`, as the end of a note."""
    if auc.low is None or auc.high is None:
        return "; chance is 0.5"
    interval = f" ({auc.low:.3f}-{auc.high:.3f})"
    if auc.low <= 0.5 <= auc.high:
        return f"{interval}: 0.5 is within its interval"
    return f"{interval}: 0.5 is not within its interval. Chance alone does that once in 20 times; otherwise {otherwise}"


def shift_notes(results: Results) -> Iterator[str]:
    """Yield a note on each dataset whose official parts, or whose two sets, are told apart within a class."""
    for dataset in results.datasets:
        shown = [item for item in results.shifts_of(dataset) if item.is_shown]
        if shown and dataset.fitted_on is not None:
            aucs = _shift_aucs(shown)
            yield (
                f"{dataset.label}: a classifier tells the two sets apart within a class: AUC {aucs}. So test scores "
                "also measure robustness to this shift, and validation does not foretell them."
            )
        elif shown:
            aucs = _shift_aucs(shown)
            yield (
                f"{dataset.label}: the official test part is drawn from another distribution than the development "
                f"part, because a classifier tells them apart within a class: AUC {aucs}. So test scores also measure "
                "robustness to this shift, and validation does not foretell them; --split=ignore adds rows without it."
            )


def _shift_aucs(shown: Sequence[Shift]) -> str:
    return "; ".join(
        f"{item.auc.value:.2f} by {item.features} among {item.group} (at random {item.null.value:.2f})"
        for item in shown
    )


def missing_controls(results: Results) -> Iterator[str]:
    """Yield a note on each control that a dataset lacks although controls were asked for."""
    undealt: dict[TaskKey, list[str]] = {}
    for dataset in results.datasets:
        kinds = {row.kind for row in results.rows_of(dataset)}
        if "shuffled" in kinds and "shuffled_over_all" not in kinds:
            undealt.setdefault(TaskKey(dataset.task_label, dataset.preset), []).append(dataset.question)
    for (label, preset), questions in undealt.items():
        of_labels = f" of {', '.join(questions)}" if any(questions) else ""
        yield (
            f"{label}, {preset}: the control with labels{of_labels} shuffled over all patients is missing, because "
            "there are so few patients that every deal left a part with one class; so no control looks for patients or "
            "copies in both parts."
        )
    yield from dict.fromkeys(note for dataset in results.datasets for note in _missing_attributes(results, dataset))
    yield from _missing_shifts(results)


def _missing_attributes(results: Results, dataset: Dataset) -> Iterator[str]:
    rows = results.rows_of(dataset)
    has_pixels, names = any(row.kind == "pixels" for row in rows), {row.features for row in rows}
    for name in ("view, sex and age", "size, file and gray level"):
        if has_pixels and name not in names:
            what = "because they are unknown, or alike in all images"
            yield f"{dataset.task_label}: the control {name} is missing, {what}."


def _missing_shifts(results: Results) -> Iterator[str]:
    """Yield a note on each pair of parts that were not drawn at random and that no control tells apart."""
    pairs: dict[tuple[str, str], list[Dataset]] = {}
    for dataset in results.datasets:
        has_controls = any(row.kind == "shuffled" for row in results.rows_of(dataset))
        if has_controls and dataset.split in ("official", "external"):
            fitted = dataset.fitted_on.folder if dataset.fitted_on else dataset.folder
            pairs.setdefault((fitted, dataset.folder), []).append(dataset)
    for datasets in pairs.values():
        asked = next((dataset for dataset in datasets if results.shifts_of(dataset)), None)
        told = {item.group for item in results.shifts_of(asked)} if asked else set()
        if len(told) < 2:
            yield _missing_shift(asked or datasets[-1], told, len({dataset.question for dataset in datasets}))


def _missing_shift(asked: Dataset, told: Collection[str], questions: int) -> str:
    """Return the note on a control that none or only one class of a question has."""
    control = "the control that tells development and test part apart"
    if not told and questions > 1:
        return (
            f"{asked.task_label}: {control} is missing, because for each label a part has too few patients of a class."
        )
    missing = [name for name in (asked.positive, asked.negative) if name not in told]
    return (
        f"{asked.label}: {control} is missing among {' and '.join(missing)}, because a part has too few patients of it."
    )
