"""The sections on a probe: scores, choice of a checkpoint, calibration, subgroups."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Final

from evaluation.report.attribute_table import attribute_table
from evaluation.report.backbone_table import backbone_table
from evaluation.report.c_path import c_path_table
from evaluation.report.detail_tables import (
    calibration_table,
    comparison_table,
    few_labels_table,
    headline_rows,
    subgroup_tables,
)
from evaluation.report.findings import PresetSection, preset_sections
from evaluation.report.html.blocks import Block, Fold, Heading, Missing, Notes, Paragraph, Section
from evaluation.report.html.faults_section import error_rate_tables
from evaluation.report.html.figures import decision_picture, few_labels_picture, reliability_picture
from evaluation.report.html.run_facts import RunFacts
from evaluation.report.selection_tables import selection_tables
from evaluation.report.shift_table import shift_table
from evaluation.report.tables import Table, marked_label
from evaluation.report.task_tables import joined, score_tables_of, subgroup_table
from evaluation.results import paper
from evaluation.results.datasets import Dataset
from evaluation.results.presets import PresetName
from evaluation.results.results import Results
from evaluation.results.selection import CheckpointSelection
from evaluation.results.task_scores import TaskScores

STRICTEST: Final[PresetName] = "rigorous"


def scores_section(results: Results | None, folder: str) -> Section:
    """Return the scores by each preset beside their controls, and everything that qualifies them."""
    title = "Scores and controls"
    if results is None:
        probe = f"sternum probe {folder} --data.shards=[FOLDER]"
        return Section("scores", title, [Missing("This run has not been probed yet.", probe)])
    presets = preset_sections(results)
    blocks: list[Block] = [Paragraph(finding) for preset in presets for finding in preset.findings]
    if results.notes:
        blocks.append(Notes(results.notes))
    blocks += [block for preset in presets for block in _preset_blocks(preset)]
    blocks += [block for dataset in results.single for block in _detail_blocks(results, dataset)]
    blocks += [block for task in results.tasks for block in _task_blocks(results, task)]
    if any(paper.in_paper(dataset) for dataset in results.datasets):
        blocks.append(Paragraph(f"Paper: {paper.PAPER}.", "quiet"))
    if results.outside:
        blocks += [Heading("Backbones from elsewhere"), backbone_table(results)]
    return Section("scores", title, blocks)


def _preset_blocks(preset: PresetSection) -> Iterator[Block]:
    yield Heading(preset.title)
    yield from preset.headline
    if preset.everything:
        rows = len(preset.everything[0].cells)
        yield Fold(f"All {rows} rows, every checkpoint probed", list(preset.everything))


def _detail_blocks(results: Results, dataset: Dataset) -> Iterator[Block]:
    """Yield what qualifies the scores of a task with one question."""
    found = _with_rows(
        [
            comparison_table(results, dataset),
            shift_table(results, dataset),
            c_path_table(dataset, headline_rows(results, dataset)),
            attribute_table(results, dataset),
        ]
    )
    few_labels = few_labels_picture(results, dataset)
    if found or few_labels:
        yield Heading(f"{marked_label(dataset)}, {dataset.preset}: {dataset.positive} against {dataset.negative}")
    yield from found
    if few_labels:
        yield few_labels
        yield few_labels_table(results, dataset)


def _task_blocks(results: Results, task: TaskScores) -> Iterator[Block]:
    labels = "classes" if task.kind == "multiclass" else "labels"
    yield Heading(f"{marked_label(task)}, {task.preset}: {len(task.labels)} {labels}")
    yield from score_tables_of(results, task)
    yield from _with_rows(
        [
            comparison_table(results, task),
            joined(results, task, shift_table),
            joined(results, task, attribute_table),
            joined(results, task, few_labels_table),
        ]
    )


def selection_section(selection: CheckpointSelection | None, folder: str) -> Section:
    """Return the choice of a checkpoint without labels."""
    title = "Checkpoint chosen without labels"
    if selection is None:
        missing = Missing(
            "No checkpoint was chosen without labels.", f"sternum probe {folder} --data.shards=[FOLDER] --select=true"
        )
        return Section("selection", title, [missing])
    chosen = Paragraph(f"Chosen: {selection.chosen}; {selection.why}.")
    return Section("selection", title, [chosen, *selection_tables(selection)])


def calibration_section(results: Results) -> Section:
    """Return how far the probabilities can be believed, and what acting on them gains."""
    blocks: list[Block] = []
    for dataset in results.single:
        blocks += filter(None, [reliability_picture(results, dataset)])
        blocks += _with_rows([calibration_table(results, dataset)])
        blocks += filter(None, [decision_picture(results, dataset)])
    blocks += _with_rows(joined(results, task, calibration_table) for task in results.tasks)
    return Section("calibration", "Calibration and decisions", blocks or [_needs_rigorous("Calibration")])


def subgroups_section(facts: RunFacts, results: Results) -> Section:
    """Return the scores in subgroups with the widest gaps between them, and the error rates in groups of images."""
    tables = [table for dataset in results.single for table in subgroup_tables(results, dataset)]
    tables += [joined(results, task, partial(subgroup_table, number)) for task in results.tasks for number in (0, 1)]
    blocks = _with_rows(tables) or [_needs_rigorous("Scores in subgroups")]
    blocks += error_rate_tables(facts)
    return Section("subgroups", "Subgroups and error rates", blocks)


def _needs_rigorous(what: str) -> Missing:
    return Missing(f"{what}: not measured. Only the preset {STRICTEST} does that, for checkpoints.")


def _with_rows(tables: Iterable[Table]) -> list[Block]:
    return [table for table in tables if table.cells]
