"""Notes that a reader needs before believing a probe's table; they are stored with the results."""

from collections.abc import Iterator, Sequence
from typing import Final

from evaluation.results import paper
from evaluation.results.results import AT_EDGE_MARK, OVERLAP_MARK, Dataset, ProbeResult, Results, last_checkpoint
from evaluation.results.scores import Estimate

SIMULATED_NOTE: Final = (
    "Simulated radiographs are drawn by a program. Scores on them show that the machinery works and prove nothing "
    "about medicine; the paper's figures come from real patients and are not shown next to them."
)
PAPER_NOTE: Final = (
    "The paper's row is from a wide ResNet-50-2, pretrained for 100 epochs on the given fraction of 224,316 CheXpert "
    "images, and from its own choice of target images. It compares with our rows only as far as these agree."
)
F1_NOTE: Final = (
    "The paper's F1 is listed as F1(healthy), because it is the F1 of the negative class: on Cell, SEN 98.7 and SPE "
    "79.5 with 390 and 234 test images give 87.5 for the healthy and 93.5 for the diseased."
)
CONVERGENCE_NOTE: Final = (
    "Some fits reached the iteration limit before they converged (scikit-learn's default limit on unscaled features, "
    "as in the paper). Their scores are what such a probe gives, not the optimum; see the last column."
)
EDGE_NOTE: Final = (
    f"{AT_EDGE_MARK} C is an end of the grid (in cross-validation: in at least one round); a wider grid might score "
    "differently."
)
INTERVAL_NOTE: Final = (
    "Intervals are over patients, and hold for these weights and classifiers: another seed or development part would "
    "give others. docs/design.md, Probing, describes each method that results.json names."
)
CROSS_NOTE: Final = (
    "In cross-validation, intervals are widened because the classifiers of the test parts share most of their images "
    "(Nadeau and Bengio 2003). They are meant for the mean AUC of such classifiers."
)
OLD_NOTE: Final = (
    "These results are of version 2: their intervals are narrower for small classes and in cross-validation, and they "
    "hold no p-values. Probe the run again for verdicts."
)


def notes_on(results: Results) -> list[str]:
    """Return the notes on a probe, general ones first."""
    real = any(dataset.preset == paper.PRESET and paper.in_paper(dataset) for dataset in results.datasets)
    by_paper = [row for row in results.rows if row.preset == paper.PRESET]
    general = {
        SIMULATED_NOTE: any(dataset.simulated for dataset in results.datasets),
        PAPER_NOTE: real,
        F1_NOTE: real,
        CONVERGENCE_NOTE: any(row.unconverged for row in by_paper),
        EDGE_NOTE: any(row.at_edge for row in results.rows),
        INTERVAL_NOTE: any(row.scores.auc.method for row in results.rows),
        CROSS_NOTE: any(dataset.rounds > 1 for dataset in results.datasets),
    }
    notes = [note for note, applies in general.items() if applies]
    notes += dict.fromkeys(note for dataset in results.datasets for note in overlap_notes(dataset))
    for dataset in results.datasets:
        rows = results.rows_of(dataset)
        notes += [*_shift_notes(dataset, rows), *_shuffled_notes(dataset, rows)]
    return notes


def overlap_notes(dataset: Dataset) -> Iterator[str]:
    """Yield a note if pretraining saw part of a dataset's test part, or if that is not known for certain."""
    if dataset.pretrained_images is None:
        yield (
            f"{dataset.label}: it is unknown whether pretraining saw the test images, because its shards are no "
            "longer available."
        )
        return
    if dataset.pictures_compared is False:
        yield f"{dataset.label}: only names tell whether pretraining saw the test images; pictures were not compared."
    if dataset.overlaps:
        yield (
            f"{OVERLAP_MARK} {dataset.label}: {describe_overlap(dataset)}, without labels, which may flatter the "
            "checkpoints."
        )


def describe_overlap(dataset: Dataset) -> str:
    """Return what pretraining saw of the test part, by class and by place."""
    parts, test = dataset.pretrained_parts, dataset.test
    counts = f"pretraining saw {dataset.pretrained_images} test images and {dataset.pretrained_patients} test patients"
    if not parts:
        return counts
    positive, negative = sum(part.positive for part in parts), sum(part.negative for part in parts)
    places = ", ".join(f"{part.positive + part.negative} in {part.place}" for part in parts)
    return (
        f"{counts} ({positive} of {test.positive} {dataset.positive}, {negative} of {test.negative} "
        f"{dataset.negative}; {places})"
    )


def describe(dataset: Dataset) -> str:
    """Return one line that describes a dataset's parts."""
    parts = {"development": dataset.development, "test": dataset.test}
    if dataset.rounds > 1:
        parts = {f"tested in turn, in {dataset.rounds} rounds,": dataset.test}
    counts = "; ".join(
        f"{name} {part.images} images of {part.patients} patients ({part.positive} {dataset.positive} / "
        f"{part.negative} {dataset.negative})"
        for name, part in parts.items()
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in dataset.excluded.items() if count)
    return f"{dataset.label}, {dataset.preset}: {dataset.split} split; {counts}" + (
        f"; left out: {left_out}" if left_out else ""
    )


def _shift_notes(dataset: Dataset, rows: Sequence[ProbeResult]) -> Iterator[str]:
    """Yield a note if validation and test AUC of the last checkpoint have intervals that do not meet."""
    last = last_checkpoint(rows)
    if last is None or last.validation is None or dataset.rounds > 1:
        return
    validation, test = last.validation, last.scores.auc
    if _is_above(validation, test) or _is_above(test, validation):
        yield (
            f"{dataset.label}, {dataset.preset}, {last.features}: validation AUC {_with_interval(validation)} and test "
            f"AUC {_with_interval(test)} part by more than their intervals: the test part is another distribution than "
            "the development part. See the control that tells these parts from each other; what validation chose (C, "
            "threshold, recalibration) may not suit the test part."
        )


def _is_above(one: Estimate, other: Estimate) -> bool:
    """Return whether the whole interval of one estimate is above that of another."""
    return one.low is not None and other.high is not None and one.low > other.high


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def _shuffled_notes(dataset: Dataset, rows: Sequence[ProbeResult]) -> Iterator[str]:
    """Yield a note on whether a probe fitted to shuffled labels scores at chance level."""
    for row in rows:
        if row.kind == "shuffled":
            auc = row.scores.auc
            yield f"{dataset.label}, {dataset.preset}, {row.features}: AUC {auc.value:.3f}{_compare_with_chance(auc)}."


def _compare_with_chance(auc: Estimate) -> str:
    if auc.low is None or auc.high is None:
        return "; chance is 0.5"
    interval = f" ({auc.low:.3f}-{auc.high:.3f})"
    if auc.low <= 0.5 <= auc.high:
        return f"{interval}: 0.5 is within its interval"
    return (
        f"{interval}: 0.5 is not within its interval. Chance alone does that once in 20 times; otherwise something "
        "reveals the classes of the test part without labels"
    )
