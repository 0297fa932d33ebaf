"""Notes that a reader needs before believing a probe's table; they are stored with the results."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from evaluation.results import paper
from evaluation.results.backbones import EarlierTraining
from evaluation.results.control_notes import (
    LEAKS,
    compare_with_chance,
    missing_controls,
    shift_notes,
    shuffled_notes,
)
from evaluation.results.datasets import OVERLAP_MARK, Dataset, PartSize
from evaluation.results.results import Results
from evaluation.results.rows import AT_EDGE_MARK, last_checkpoint
from evaluation.results.scores import Estimate
from evaluation.results.task_scores import TaskOverlap, TaskScores
from infra.words import counted

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
    "as in the paper). Their scores are what such a probe gives, not the optimum; see 'not converged'."
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
NO_RUN_NOTE: Final = (
    "These backbones were probed without a run, so the test images were not compared with the images that they were "
    "trained on. They may have seen the test images, even with their labels; ask whoever trained them."
)
OLD_NOTE: Final = (
    "These results are of version 2: their intervals are narrower for small classes and in cross-validation, and they "
    "hold no p-values. Probe the run again for verdicts."
)


def notes_on(results: Results) -> list[str]:
    """Return the notes on a probe, general ones first."""
    in_paper = [dataset for dataset in results.datasets if dataset.preset == paper.PRESET and paper.in_paper(dataset)]
    by_paper = [row for row in results.rows if row.preset == paper.PRESET]
    general = {
        SIMULATED_NOTE: any(dataset.simulated for dataset in results.datasets),
        PAPER_NOTE: bool(in_paper),
        F1_NOTE: bool(in_paper),
        CONVERGENCE_NOTE: any(row.unconverged for row in by_paper),
        EDGE_NOTE: any(row.at_edge for row in results.rows),
        INTERVAL_NOTE: any(row.scores.auc.method for row in results.rows),
        NO_RUN_NOTE: results.run is None and not any(item.trainings for item in results.outside),
        CROSS_NOTE: any(dataset.rounds > 1 for dataset in results.datasets),
    }
    notes = [note for note, applies in general.items() if applies]
    notes += [
        f"{item.name}: the export states that it was trained on {item.trained_on}."
        for item in results.outside
        if item.trained_on
    ]
    notes += [*_size_notes(results), *_stage_notes(results), *_ancestor_notes(results)]
    notes += [paper.share_note(item, "of the paper") for item in in_paper if not paper.has_papers_share(item)]
    notes += dict.fromkeys(note for dataset in results.single for note in overlap_notes(dataset))
    notes += dict.fromkeys(note for dataset in results.datasets for note in _external_notes(dataset))
    notes += dict.fromkeys(note for dataset in results.datasets for note in _fit_notes(dataset, results.config))
    for dataset in results.single:
        rows = results.rows_of(dataset)
        notes += [*_validation_notes(results, dataset), *shuffled_notes(dataset, rows)]
    notes += dict.fromkeys(note for task in results.tasks for note in _task_notes(results, task))
    return [*notes, *shift_notes(results), *missing_controls(results)]


def _external_notes(dataset: Dataset) -> Iterator[str]:
    """Yield a note on what was fitted to which set, in an external validation."""
    fitted = dataset.fitted_on
    if fitted is not None:
        yield (
            f"{dataset.task_label}: C, classifier and threshold come from images of {fitted.label} alone; the test "
            "part is every image of the other set that answers the task and shares no patient and no picture with them."
        )


def _size_notes(results: Results) -> Iterator[str]:
    """Yield a note if the probed images have another size than the views of the pretraining."""
    run = results.run
    if run is not None and run.probed_px != run.size_px:
        yield (
            f"The probed images have {run.probed_px} x {run.probed_px} px, the views of the pretraining "
            f"{run.size_px} x {run.size_px} px. The untrained backbone and raw pixels get the probed ones too."
        )


def _stage_notes(results: Results) -> Iterator[str]:
    """Yield a note if a checkpoint is shown that was trained before the views had their last size."""
    if results.run is None:
        return
    stages = results.run.recipe.get("train.stages") or []
    epochs = sum(int(stage.partition("@")[2]) for stage in stages)
    if any(row.kind == "checkpoint" and (row.epoch or 0.0) <= epochs for row in results.rows) and stages:
        yield (
            f"The views had another size in the first {epochs} epochs (train.stages=[{','.join(stages)}]) than "
            f"afterwards ({results.run.size_px} px). All checkpoints are probed at {results.run.probed_px} px, those "
            "of these epochs too, so their scores show what is missing as well as what was learned."
        )


def _ancestor_notes(results: Results) -> Iterator[str]:
    """Yield a note on the trainings before the run and of other backbones: whether what they saw is known."""
    for weights in results.run.before if results.run else []:
        yield _training_note(f"The run descends from {weights.weights}", weights)
    for item in results.outside:
        for number, weights in enumerate(item.trainings):
            yield _training_note(f"{item.name} descends from {weights.weights}" if number else item.name, weights)
        if results.run is None and not item.trainings and any(other.trainings for other in results.outside):
            yield (
                f"{item.name}: nothing says which images it was trained on; it may have seen the test images, even "
                "with their labels."
            )


def _training_note(what: str, weights: EarlierTraining) -> str:
    """Return the note on one training; `what` names its weights."""
    if weights.data_identity is None:
        return f"{what}; Sternum cannot know which images these weights have seen."
    trained, shards = f"{what}, trained for {counted(weights.epochs or 0, 'epoch')} on ", ", ".join(weights.shards)
    if weights.compared:
        return f"{trained}{shards}; test images that it saw there count as seen by pretraining."
    return f"{trained}{shards or 'shards'} that are not available; it is unknown whether it saw test images there."


def _task_notes(results: Results, task: TaskScores) -> Iterator[str]:
    """Yield the notes on a task with several labels: one of each kind for all of them."""
    questions = results.questions_of(task)
    yield from _task_overlap_notes(task, questions)
    for policy, meaning in (("ones", "present"), ("zeros", "absent")):
        names = [dataset.question for dataset in questions if dataset.uncertain == policy]
        if names:
            yield (
                f"{task.label}: uncertain labels count as {meaning}, in the test part too: {', '.join(names)}; an "
                "official test part that people labeled has none."
            )
    for label, reason in task.left_out.items():
        yield f"{task.label}, {task.preset}: {label} is not scored and not in the means; the dataset {reason}."
    for row in task.rows:
        if row.kind in LEAKS:
            yield (
                f"{task.label}, {task.preset}, {row.features}: mean AUC {row.auc.value:.3f}"
                f"{compare_with_chance(row.auc, LEAKS[row.kind])}."
            )


def _task_overlap_notes(task: TaskScores, questions: Sequence[Dataset]) -> Iterator[str]:
    """Yield the notes on what pretraining saw of a task's test images, each counted once for all labels."""
    most_seen = max(questions, key=lambda dataset: dataset.pretrained_images or 0)
    if task.overlap is None:  # unknown, or results of an older version: under the label's own name
        yield from overlap_notes(most_seen)
        return
    yield from overlap_notes(replace(most_seen, label=task.label, pretrained_images=0, pretrained_patients=0))
    if task.overlaps:
        yield _overlap_note(task.label, describe_task_overlap(task.overlap))


_FITS: Final = {
    "pad": "padded to a square by repeating their border. The padding shows width / height to all features alike; see "
    "what that alone reaches",
    "squash": "squashed to a square. The distortion shows width / height to all features alike; see what that alone "
    "reaches",
    "square": "cut to their center square. What lies outside it, such as the sides of the lungs, takes no part",
}


def _fit_notes(dataset: Dataset, config: dict[str, Any]) -> Iterator[str]:
    """Yield a note on how images that are not square were made square."""
    fit = config.get("probe_fit")
    if dataset.not_square and fit in _FITS:
        yield f"{dataset.label}: {dataset.not_square} images are not square and were {_FITS[fit]}."


def overlap_notes(dataset: Dataset) -> Iterator[str]:
    """Yield a note if pretraining saw part of a dataset's test part, or if that is not known for certain."""
    if dataset.pretrained_images is None:
        yield (
            f"{dataset.label}: it is unknown whether pretraining saw the test images, because the images that it "
            "saw are not at hand."
        )
        return
    if dataset.pictures_compared is False:
        yield f"{dataset.label}: only names tell whether pretraining saw the test images; pictures were not compared."
    if dataset.overlaps:
        yield _overlap_note(dataset.label, describe_overlap(dataset))


def _overlap_note(label: str, what: str) -> str:
    return f"{OVERLAP_MARK} {label}: {what}, without labels, which may flatter the checkpoints."


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


def describe_task_overlap(overlap: TaskOverlap) -> str:
    """Return what pretraining saw of the test part of a task with several labels, by place."""
    counts = (
        f"pretraining saw {overlap.images} test images and {overlap.patients} test patients, each counted once for all "
        "labels"
    )
    places = ", ".join(f"{count} in {place}" for place, count in overlap.places.items())
    return f"{counts} ({places})" if places else counts


def describe(dataset: Dataset) -> str:
    """Return one line that describes a dataset's parts."""
    parts = {"development": dataset.development, "test": dataset.test}
    if dataset.rounds > 1:
        parts = {f"tested in turn, in {dataset.rounds} rounds,": dataset.test}
    counts = "; ".join(
        f"{name} {part.images} images of {_count_patients(part)} ({part.positive} {dataset.positive} / "
        f"{part.negative} {dataset.negative})"
        for name, part in parts.items()
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in dataset.excluded.items() if count)
    return f"{dataset.label}, {dataset.preset}: {dataset.split} split; {counts}" + (
        f"; left out: {left_out}" if left_out else ""
    )


def _count_patients(part: PartSize) -> str:
    """Count the patients, and the groups that stay on one side of a split and are resampled whole."""
    groups = "" if part.groups is None else f" in {part.groups} groups without near-identical images in common"
    return f"{part.patients} patients{groups}"


def _validation_notes(results: Results, dataset: Dataset) -> Iterator[str]:
    """Yield a note if validation and test AUC of the last checkpoint have intervals that do not meet."""
    last = last_checkpoint(results.rows_of(dataset))
    if last is None or last.validation is None or dataset.rounds > 1:
        return
    validation, test = last.validation, last.scores.auc
    if _is_above(validation, test) or _is_above(test, validation):
        control = " See the control that tells these parts from each other." if results.shifts else ""
        yield (
            f"{dataset.label}, {dataset.preset}, {last.features}: validation AUC {_with_interval(validation)} and test "
            f"AUC {_with_interval(test)} part by more than their intervals: the test part is another distribution than "
            f"the development part.{control} What validation chose (C, threshold, recalibration) may not suit the test "
            "part."
        )


def _is_above(one: Estimate, other: Estimate) -> bool:
    """Return whether the whole interval of one estimate is above that of another."""
    return one.low is not None and other.high is not None and one.low > other.high


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"
