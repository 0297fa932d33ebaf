"""The first section: what was learned and what is not shown, in words for radiologists and engineers alike."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from evaluation.report.html.blocks import Block, Missing, Notes, Paragraph, Section
from evaluation.report.html.run_facts import Pretraining, RunFacts
from evaluation.report.html.score_sections import STRICTEST
from evaluation.report.tables import SIGNIFICANT, percent, point_interval
from evaluation.results.control_notes import LEAKS
from evaluation.results.datasets import Dataset
from evaluation.results.notes import describe_overlap
from evaluation.results.results import Results
from evaluation.results.rows import Comparison
from evaluation.results.scores import Estimate
from evaluation.results.task_scores import TaskScores
from infra.words import counted

_MOST_TASKS: Final = 3  # described in words; the tables have all
_SIMPLE: Final = ("pixels", "border", "attributes")  # controls that see no anatomy, or hardly any


class _Row(NamedTuple):
    """The AUC of one feature set on one task; of a task with several labels, the mean over them."""

    features: str
    kind: str
    auc: Estimate


def summary_section(facts: RunFacts) -> Section:
    """Return what the run is, what it learned, and what is not shown."""
    blocks: list[Block] = [Paragraph(_origin(facts), "lead")]
    results = facts.results
    if results is None:
        blocks.append(Missing("Nothing is known yet of what it learned, because it has not been probed."))
        return Section("summary", "In short", blocks)
    tasks = _strictest_tasks(results)
    blocks += [Paragraph(_learned(results, task), "lead") for task in tasks[:_MOST_TASKS]]
    if len(tasks) > _MOST_TASKS:
        blocks.append(Paragraph(f"{len(tasks) - _MOST_TASKS} more tasks are in the tables below."))
    blocks += [Paragraph("What is not shown:"), Notes(list(_not_shown(results, tasks)))]
    return Section("summary", "In short", blocks)


def _origin(facts: RunFacts) -> str:
    pretraining, results = facts.pretraining, facts.results
    if pretraining is None:
        names = ", ".join(backbone.name for backbone in results.outside) if results else ""
        return f"{facts.name} compares networks that were trained elsewhere: {names}."
    config = pretraining.config
    count = pretraining.images
    images = f"{count:,} chest radiographs" if count else "chest radiographs, whose number is unknown on this machine,"
    return (
        f"{facts.name} is a {config.model.backbone} that learned from {images} without any diagnosis: it was trained "
        f"to recognize two altered views of one radiograph, at {config.views.size_px} x {config.views.size_px} pixels."
        f" {_progress(pretraining)}"
    )


def _progress(pretraining: Pretraining) -> str:
    planned = pretraining.config.train.epochs
    if pretraining.epoch is None:
        return f"No step of its {counted(planned, 'epoch')} has been logged yet."
    done = min(pretraining.epoch, planned)
    if pretraining.epoch >= planned:
        return f"It saw every image {counted(planned, 'time')}."
    state = f" (state: {pretraining.status.state})" if pretraining.status else ""
    return f"It has done {done:.2f} of {counted(planned, 'epoch')}{state}."


def _strictest_tasks(results: Results) -> list[Dataset | TaskScores]:
    """Return each task once, by its strictest preset."""
    every: list[Dataset | TaskScores] = [*results.single, *results.tasks]
    chosen: dict[str, Dataset | TaskScores] = {}
    for task in every:
        if task.label not in chosen or task.preset == STRICTEST:
            chosen[task.label] = task
    return list(chosen.values())


def _rows(results: Results, task: Dataset | TaskScores) -> list[_Row]:
    if isinstance(task, TaskScores):
        return [_Row(row.features, row.kind, row.auc) for row in task.rows]
    return [_Row(row.features, row.kind, row.scores.auc) for row in results.rows_of(task)]


def _last(results: Results, task: Dataset | TaskScores) -> _Row | None:
    """Return the row of the last checkpoint, or of the first backbone."""
    rows = results.judged_means(task) if isinstance(task, TaskScores) else results.judged_rows(task)
    names = [row.features for row in rows if row.kind == "checkpoint"]
    return next((row for row in _rows(results, task) if row.features in names[:1]), None)


def _learned(results: Results, task: Dataset | TaskScores) -> str:
    last = _last(results, task)
    if last is None:
        return f"On {task.label}, no checkpoint was probed, so nothing is known of what it learned there."
    sentences = [_task_in_words(task), _ranking(last), *_against_untrained(results, task, last)]
    simple = [row for row in _rows(results, task) if row.kind in _SIMPLE]
    if simple:
        best = max(simple, key=lambda row: row.auc.value)
        without = f"Without any network, {best.features} alone reaches {percent(best.auc.value)}"
        level = best.auc.value >= last.auc.value
        sentences.append(f"{without}, which is no worse: the task can be solved without what was learned." if level
                         else f"{without}.")  # fmt: skip
    return " ".join(sentences)


def _task_in_words(task: Dataset | TaskScores) -> str:
    if isinstance(task, TaskScores):
        return (
            f"On {task.label}, simple classifiers (logistic regression) on the frozen network were tested for "
            f"{len(task.labels)} labels on {counted(task.images, 'image')} of {counted(task.patients, 'patient')}."
        )
    fitted = f", fitted to images of {task.fitted_on.label} alone," if task.fitted_on else ""
    return (
        f"On {task.label}, a simple classifier (logistic regression) on the frozen network{fitted} was tested on "
        f"{counted(task.test.images, 'image')} of {counted(task.test.patients, 'patient')}: {task.positive} against "
        f"{task.negative}."
    )


def _ranking(last: _Row) -> str:
    """Say what the AUC means and whether it is above chance."""
    text = f"Given one image of each kind, it ranks the two correctly in {percent(last.auc.value)} of 100 cases (AUC"
    if last.auc.low is None or last.auc.high is None:
        return f"{text}; guessing gives 50). It has no interval, so chance is not excluded."
    text += f"; 95 % interval {percent(last.auc.low)} to {percent(last.auc.high)}; guessing gives 50)."
    if last.auc.low <= 0.5 <= last.auc.high:
        return f"{text} The interval includes 50: this is not shown to be better than guessing."
    return f"{text} That is worse than guessing." if last.auc.high < 0.5 else text


def _against_untrained(results: Results, task: Dataset | TaskScores, last: _Row) -> Iterator[str]:
    """Say what pretraining added to the same network with random weights."""
    untrained = next((row for row in _rows(results, task) if row.kind == "untrained"), None)
    if untrained is None:
        yield "The same network without training was not probed, so nothing says what pretraining added."
        return
    found = [item for item in results.comparisons_of(task) if item.other == untrained.features]
    theirs = f"The same network before any training reaches {percent(untrained.auc.value)}"
    yield f"{theirs}; {_difference(found[0])}" if found else f"{theirs}; the difference has no interval."


def _difference(item: Comparison) -> str:
    value, bounds = item.difference.value, point_interval(item.difference)
    text = f"training changed that by {100 * value:+.1f} points{f' (95 % interval {bounds})' if bounds else ''}"
    if item.p_holm is None:
        return f"{text}, which no test has confirmed."
    if item.p_holm > SIGNIFICANT:
        includes = (item.difference.low or 0.0) <= 0 <= (item.difference.high or 0.0)
        why = "the interval includes 0" if includes else "it may be by chance among the comparisons made"
        return f"{text}, which is not shown to be a difference: {why}."
    return f"{text}, more than chance explains." if value > 0 else f"{text}: training made it WORSE."


def _not_shown(results: Results, tasks: list[Dataset | TaskScores]) -> Iterator[str]:
    if any(dataset.simulated for dataset in results.datasets):
        yield "Anything about medicine: these radiographs were drawn by a program."
    for dataset in dict.fromkeys(item.task_label for item in results.datasets if item.overlaps):
        example = max(
            (item for item in results.datasets if item.task_label == dataset), key=lambda it: it.pretrained_images or 0
        )
        yield f"How it does on {dataset} images that are new to it: {describe_overlap(example)}."
    if any(dataset.pretrained_images is None for dataset in results.datasets):
        yield "Whether the network saw test images while it was trained: its training images are not at hand."
    if not any(dataset.fitted_on for dataset in results.datasets):
        yield (
            "How it does at another hospital: classifiers were fitted and tested on images of one source "
            "(--train_on tests that)."
        )
    if results.run:
        yield (
            "Whether the method is better: this is one pretraining with one seed, and another seed gives another "
            "network (sternum compare)."
        )
    if any(shift.is_shown for shift in results.shifts):
        yield "That test images are like development images: controls tell the two parts apart (see the scores)."
    if any(row.kind in LEAKS and _excludes_chance(row.scores.auc) for row in results.rows):
        yield "That nothing leaks: a classifier fitted to shuffled labels does not score at chance (see the scores)."
    yield "Any benefit for patients. The scores are for research only."


def _excludes_chance(auc: Estimate) -> bool:
    return auc.low is not None and auc.high is not None and not auc.low <= 0.5 <= auc.high
