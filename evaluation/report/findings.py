"""What the report says of a probe: a sentence, tables and figures, in the order in which a reader wants them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.report.details import (
    calibration_table,
    comparison_table,
    few_labels_table,
    headline_rows,
    subgroup_tables,
)
from evaluation.report.pictures import Picture, accuracy_picture, auc_picture, few_labels_picture, reliability_picture
from evaluation.report.tables import HEADER, Table, interval, label, percent, score_table, span, verdict
from evaluation.results import paper
from evaluation.results.presets import PRESETS, PresetName
from evaluation.results.results import Dataset, Kind, ProbeResult, Results, last_checkpoint

_STRICTEST: Final[PresetName] = "rigorous"
_RIVALS: Final[tuple[Kind, ...]] = ("finetuned", "untrained", "pixels", "border", "attributes")
_TITLES: Final[dict[str, str]] = {
    "gazda2021": "the paper's protocol",
    "rigorous": "scaled features, near-identical images in one part, cross-validated without an official split",
}


@dataclass(frozen=True)
class ByPreset:
    """What one preset found: a sentence a dataset, the last checkpoints beside their controls, and every row.

    trained: what the rows of checkpoints are called.
    """

    title: str
    findings: list[str]
    trained: set[str]
    headline: Table
    everything: Table


@dataclass(frozen=True)
class OnDataset:
    """What was found on one dataset: tables and pictures."""

    title: str
    blocks: list[Table | Picture]


def by_presets(results: Results) -> list[ByPreset]:
    """Return what each preset found, in the order of the results."""
    return [_by_preset(results, preset) for preset in dict.fromkeys(dataset.preset for dataset in results.datasets)]


def _by_preset(results: Results, preset: str) -> ByPreset:
    datasets = [dataset for dataset in results.datasets if dataset.preset == preset]
    threshold = "chosen on validation" if _chooses_threshold(preset) else "0.5"
    return ByPreset(
        f"{preset}: {_TITLES.get(preset, 'as configured')}",
        [_finding(results, dataset) for dataset in datasets],
        {row.features for row in results.rows if row.preset == preset and row.kind == "checkpoint"},
        Table(
            "Scores on the test part in percent, disease positive: the last checkpoint beside its controls. C was "
            f"chosen in the development part; threshold {threshold}; 'not converged' counts logistic regressions.",
            HEADER,
            [row for dataset in datasets for row in score_table(results, dataset, headline_rows(results, dataset))],
        ),
        Table(
            "Every checkpoint. Do not choose one by these test scores.",
            HEADER,
            [row for dataset in datasets for row in score_table(results, dataset, results.rows_of(dataset))],
        ),
    )


def _chooses_threshold(preset: str) -> bool:
    return any(name == preset and known.chooses_threshold for name, known in PRESETS.items())


def _finding(results: Results, dataset: Dataset) -> str:
    """Say in one sentence how the last checkpoint stands to its controls."""
    rows = results.rows_of(dataset)
    last = last_checkpoint(rows)
    if last is None:
        return f"{label(dataset)}, {dataset.preset}: no checkpoint was probed."
    auc, around = percent(last.scores.auc.value), interval(last.scores.auc)
    text = f"{label(dataset)}, {dataset.preset}: AUC {auc} %{f' ({around})' if around else ''} at {last.features}"
    for row in rows:
        if row.kind in _RIVALS:
            text += f"; {_stands(results, dataset, last, row)}"
    return text + "."


def _stands(results: Results, dataset: Dataset, last: ProbeResult, other: ProbeResult) -> str:
    """Say how far above another row the last checkpoint is, and whether that is shown where they were compared."""
    difference = 100 * (last.scores.auc.value - other.scores.auc.value)
    text = f"{abs(difference):.1f} points {'above' if difference > 0 else 'BELOW'} the {other.features}"
    said = [f"{percent(other.scores.auc.value)} %"]
    for item in results.comparisons:
        names = (item.dataset, item.preset, item.features, item.other)
        if names == (dataset.label, dataset.preset, last.features, other.features) and span(item.difference):
            shown = verdict(item.difference)
            said.append(f"difference {span(item.difference)}{f', {shown}' if shown.startswith('not') else ''}")
    return f"{text} ({'; '.join(said)})"


def on_datasets(results: Results) -> list[OnDataset]:
    """Return what was found on each dataset, in the order of the results."""
    return [_on_dataset(results, name) for name in dict.fromkeys(dataset.label for dataset in results.datasets)]


def _on_dataset(results: Results, name: str) -> OnDataset:
    datasets = {dataset.preset: dataset for dataset in results.datasets if dataset.label == name}
    first = next(iter(datasets.values()))
    strictest = datasets.get(_STRICTEST, first)
    blocks: list[Table | Picture | None] = [auc_picture(results, strictest)]
    blocks += [comparison_table(results, dataset) for dataset in datasets.values()]
    blocks.append(accuracy_picture(results, datasets.get(paper.PRESET, first)))
    for dataset in datasets.values():
        blocks += [reliability_picture(results, dataset), calibration_table(results, dataset)]
        blocks += subgroup_tables(results, dataset)
        blocks += [few_labels_picture(results, dataset), few_labels_table(results, dataset)]
    return OnDataset(f"{label(first)}: {first.positive} against {first.negative}", _there(blocks))


def _there(blocks: Sequence[Table | Picture | None]) -> list[Table | Picture]:
    """Leave out what was not measured."""
    return [block for block in blocks if isinstance(block, Picture) or (block is not None and block.cells)]
