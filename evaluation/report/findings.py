"""What a page or a model card says first of a probe: a sentence for each dataset, then the scores to quote."""

from dataclasses import dataclass
from typing import Final

from evaluation.report.detail_tables import headline_rows
from evaluation.report.score_table import score_rows, score_tables
from evaluation.report.tables import Table, interval, marked_label, p_value, percent, point_interval, verdict
from evaluation.results.datasets import Dataset
from evaluation.results.presets import PRESETS
from evaluation.results.results import Results
from evaluation.results.rows import last_checkpoint
from evaluation.results.scores import Estimate
from evaluation.results.task_scores import TaskScores

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
