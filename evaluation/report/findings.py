"""The report's sections on a probe: sentences, tables and figures, in the order in which a reader needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.report.attribute_table import attribute_table
from evaluation.report.c_path import c_path_table
from evaluation.report.detail_tables import (
    calibration_table,
    comparison_table,
    few_labels_table,
    headline_rows,
    subgroup_tables,
)
from evaluation.report.forest_plot import forest_picture
from evaluation.report.pictures import (
    Picture,
    accuracy_picture,
    auc_picture,
    decision_picture,
    few_labels_picture,
    reliability_picture,
)
from evaluation.report.score_table import score_rows, score_tables
from evaluation.report.shift_table import shift_table
from evaluation.report.tables import Table, interval, marked_label, p_value, percent, point_interval, verdict
from evaluation.report.task_tables import detail_tables_of, score_tables_of
from evaluation.results import paper
from evaluation.results.datasets import Dataset
from evaluation.results.presets import PRESETS, PresetName
from evaluation.results.results import Results
from evaluation.results.rows import last_checkpoint
from evaluation.results.scores import Estimate
from evaluation.results.task_scores import TaskScores

_STRICTEST: Final[PresetName] = "rigorous"
_RIVALS: Final[tuple[str, ...]] = (
    "finetuned",
    "initial",
    "compared",
    "untrained",
    "pixels",
    "border",
    "attributes",
)
_WITHOUT_ARTICLE: Final = ("finetuned", "compared")  # an epoch, or a name that the user gave
_NO_CONTROLS: Final = ("checkpoint", "finetuned", "compared")
_TITLES: Final[dict[str, str]] = {
    "gazda2021": "the paper's protocol",
    "rigorous": "scaled features, near-identical images in one part, cross-validation without an official split",
}


@dataclass(frozen=True)
class PresetSection:
    """The scores by one preset.

    Attributes:
        title: heading
        findings: one sentence for each dataset
        headline: the last checkpoints and the controls, as two tables
        everything: all rows, as two tables; empty if the headline has them all
    """

    title: str
    findings: list[str]
    headline: list[Table]
    everything: list[Table]


@dataclass(frozen=True)
class DatasetSection:
    """Tables and pictures about one dataset."""

    title: str
    blocks: list[Table | Picture]


def preset_sections(results: Results) -> list[PresetSection]:
    """Return one section for each preset, in the order of the results."""
    return [
        _preset_section(results, preset) for preset in dict.fromkeys(dataset.preset for dataset in results.datasets)
    ]


def _preset_section(results: Results, preset: str) -> PresetSection:
    datasets = [dataset for dataset in results.single if dataset.preset == preset]
    tasks = [task for task in results.tasks if task.preset == preset]
    threshold = "chosen on validation" if _chooses_threshold(preset) else "0.5"
    headline, everything = (
        [row for dataset in datasets for row in score_rows(results, dataset, listed(results, dataset))]
        for listed in (headline_rows, Results.rows_of)
    )
    controls = " and its controls" if any(row.kind not in _NO_CONTROLS for row in results.rows) else ""
    return PresetSection(
        f"{preset}: {_TITLES.get(preset, 'as configured')}",
        [*(_finding(results, dataset) for dataset in datasets), *(_task_finding(results, task) for task in tasks)],
        score_tables(
            f"Scores on the test part in percent, disease positive: {results.judged}{controls}. C is chosen by the "
            "validation AUC, in the development part; AP: average precision, whose chance level is the share of "
            f"positives; 'not converged' counts logistic regressions. Threshold of decisions: {threshold}.",
            headline,
        ),
        score_tables("Every checkpoint. Do not choose one by these test scores.", everything)
        if len(everything) > len(headline)
        else [],
    )


def _chooses_threshold(preset: str) -> bool:
    return any(name == preset and known.chooses_threshold for name, known in PRESETS.items())


def _finding(results: Results, dataset: Dataset) -> str:
    """Return one sentence that compares the last checkpoint with its controls."""
    rows = results.rows_of(dataset)
    last = last_checkpoint(rows)
    if last is None:
        return f"{marked_label(dataset)}, {dataset.preset}: no checkpoint was probed."
    auc, bounds = percent(last.scores.auc.value), interval(last.scores.auc)
    text = (
        f"{marked_label(dataset)}, {dataset.preset}: AUC {auc} %{f' ({bounds})' if bounds else ''} at {last.features}"
    )
    for row in rows:
        if row.kind in _RIVALS:
            ours, theirs = (last.features, last.scores.auc), (row.features, row.scores.auc)
            text += f"; {_compare(results, dataset, ours, theirs, row.kind)}"
    return text + "."


def _task_finding(results: Results, task: TaskScores) -> str:
    """Return one sentence that compares the last checkpoint's mean AUC with those of its controls."""
    title, last = f"{marked_label(task)}, {task.preset}", task.last
    if last is None:
        return f"{title}: no checkpoint was probed."
    auc, bounds = percent(last.auc.value), interval(last.auc)
    text = (
        f"{title}: mean AUC of {len(task.labels)} labels {auc} %{f' ({bounds})' if bounds else ''} at {last.features}"
    )
    for row in task.rows:
        if row.kind in _RIVALS:
            text += f"; {_compare(results, task, (last.features, last.auc), (row.features, row.auc), row.kind)}"
    return text + "."


def _compare(
    results: Results, dataset: Dataset | TaskScores, last: tuple[str, Estimate], other: tuple[str, Estimate], kind: str
) -> str:
    """Return how far the last checkpoint's AUC is above another one, and whether a comparison confirms that."""
    difference = 100 * (last[1].value - other[1].value)
    points = f"{abs(difference):.1f}"
    side = f"{points} points {'above' if difference > 0 else 'BELOW'}" if float(points) else "level with"
    text = f"{side} {other[0]}" if kind in _WITHOUT_ARTICLE else f"{side} the {other[0]}"
    facts = [f"{percent(other[1].value)} %"]
    for item in results.comparisons_of(dataset):
        bounds = point_interval(item.difference)
        if (item.features, item.other) == (last[0], other[0]) and bounds:
            shown = verdict(item)
            doubt = f", {shown}: p {p_value(item.p_holm)}, Holm" if shown.startswith("not") else ""
            facts.append(f"difference {bounds}{doubt}")
    return f"{text} ({'; '.join(facts)})"


def dataset_sections(results: Results) -> list[DatasetSection]:
    """Return one section for each dataset, in the order of the results."""
    return [
        *(_dataset_section(results, name) for name in dict.fromkeys(dataset.label for dataset in results.single)),
        *(_task_section(results, name) for name in dict.fromkeys(task.label for task in results.tasks)),
    ]


def _dataset_section(results: Results, name: str) -> DatasetSection:
    datasets = {dataset.preset: dataset for dataset in results.datasets if dataset.label == name}
    first = next(iter(datasets.values()))
    strictest = datasets.get(_STRICTEST, first)
    overview = auc_picture if results.run else forest_picture
    blocks: list[Table | Picture | None] = [overview(results, strictest)]
    blocks += [comparison_table(results, dataset) for dataset in datasets.values()]
    blocks += [shift_table(results, dataset) for dataset in datasets.values()]
    blocks += [c_path_table(dataset, headline_rows(results, dataset)) for dataset in datasets.values()]
    blocks.append(accuracy_picture(results, datasets.get(paper.PRESET, first)))
    for dataset in datasets.values():
        blocks += [reliability_picture(results, dataset), calibration_table(results, dataset)]
        blocks.append(decision_picture(results, dataset))
        blocks += [attribute_table(results, dataset), *subgroup_tables(results, dataset)]
        blocks += [few_labels_picture(results, dataset), few_labels_table(results, dataset)]
    return DatasetSection(f"{marked_label(first)}: {first.positive} against {first.negative}", _without_empty(blocks))


def _task_section(results: Results, name: str) -> DatasetSection:
    tasks = [task for task in results.tasks if task.label == name]
    blocks: list[Table | Picture | None] = []
    for task in tasks:
        blocks += [*score_tables_of(results, task), *detail_tables_of(results, task)]
    labels = "classes" if tasks[0].kind == "multiclass" else "labels"
    return DatasetSection(f"{marked_label(tasks[0])}: {len(tasks[0].labels)} {labels}", _without_empty(blocks))


def _without_empty(blocks: Sequence[Table | Picture | None]) -> list[Table | Picture]:
    """Return the blocks that are not empty."""
    return [block for block in blocks if isinstance(block, Picture) or (block is not None and block.cells)]
