"""The paper's Table III next to our results: one run, or several seeds, for each fraction of the pretraining set."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Final

from evaluation.report.tables import Table, interval, marked_label, percent
from evaluation.results import paper
from evaluation.results.backbones import Run
from evaluation.results.datasets import Dataset
from evaluation.results.notes import NO_RUN_NOTE, PAPER_NOTE, SIMULATED_NOTE, overlap_notes
from evaluation.results.results import Results
from evaluation.results.rows import ProbeResult, last_checkpoint
from evaluation.results.scores import Estimate
from infra.words import counted
from sharding.format.fractions import FRACTIONS_PERCENT

HEADER: Final = ("dataset", "features", "fraction", "ACC", "AUC", "95 %", "SEN", "SPE", "F1")

Cells = tuple[str, ...]


def table_iii(results: Sequence[Results], preset: str) -> Table:
    """Compare the last checkpoint of each run with the paper's figures.

    Each dataset and fraction has our row, if a run has one, then the paper's; the previously published result follows.
    Simulated datasets, and tasks that are not in the paper, are listed without the paper's rows.

    Runs of one fraction, which differ in their seed alone, become one row with mean and standard deviation.

    Args:
        results: any number of records for each fraction
        preset: name of the preset
    """
    by_fraction = {
        fraction: [item for item in results if item.run and item.run.fraction_percent == fraction]
        for fraction in FRACTIONS_PERCENT
    }
    without_run = [item for item in results if item.run is None]
    datasets = {dataset.label: dataset for item in results for dataset in item.single if dataset.preset == preset}
    cells = []
    for dataset in datasets.values():
        cells += [cells_of for item in without_run for cells_of in _backbone_rows(item, dataset)]
        cells += _rows(by_fraction, dataset)
    return Table(_caption(preset), HEADER, cells, text_columns=3, notes=list(_notes(results, preset)))


def _rows(by_fraction: Mapping[int, Sequence[Results]], example: Dataset) -> Iterator[Cells]:
    """Yield all rows of one dataset. Each run's own record says whether its pretraining saw the test part."""
    in_paper = paper.in_paper(example)
    for fraction in FRACTIONS_PERCENT:
        if probed := [pair for results in by_fraction[fraction] for pair in _probed(results, example)]:
            yield _our_row(probed, fraction)
        if in_paper:
            figures = (f"{value:.1f}" for value in paper.TABLE_III[example.name][fraction])
            acc, auc, sen, spe, f1 = figures
            yield (example.label, "paper", f"{fraction} %", acc, auc, "", sen, spe, f1)
    if in_paper:
        yield _published_row(example)


def _backbone_rows(results: Results, example: Dataset) -> Iterator[Cells]:
    """Yield a row for each backbone of a probe without a run."""
    for dataset in results.datasets:
        if dataset.key == example.key:
            for row in results.judged_rows(dataset):
                yield _row([(dataset, row)], row.features, "")


def _probed(results: Results, example: Dataset) -> list[tuple[Dataset, ProbeResult]]:
    """Return a run's record of the same task with its last checkpoint; empty if it has none."""
    same = [dataset for dataset in results.datasets if dataset.key == example.key]
    lasts = [(dataset, last_checkpoint(results.rows_of(dataset))) for dataset in same]
    return [(dataset, last) for dataset, last in lasts if last]


def _our_row(probed: Sequence[tuple[Dataset, ProbeResult]], fraction: int) -> Cells:
    """Return the scores of one run, or the means of several seeds."""
    seeds = f", mean of {len(probed)} seeds (SD)" if len(probed) > 1 else ""
    return _row(probed, f"ours, {probed[0][1].features}{seeds}", f"{fraction} %")


def _row(probed: Sequence[tuple[Dataset, ProbeResult]], features: str, fraction: str) -> Cells:
    """Return the scores of one feature set, or the means of several; only those of one have an interval."""
    dataset = next((dataset for dataset, _ in probed if dataset.overlaps), probed[0][0])
    scores = [last.scores for _, last in probed]
    comparable = all(not paper.in_paper(item) or paper.has_papers_share(item) for item, _ in probed)
    return (
        marked_label(dataset),
        features,
        fraction,
        _mean([item.acc for item in scores]) if comparable else "",
        _mean([item.auc for item in scores]),
        "" if len(probed) > 1 else interval(scores[0].auc),
        _mean([item.sen for item in scores]),
        _mean([item.spe for item in scores]),
        _mean([item.f1_negative for item in scores]) if comparable else "",
    )


def _mean(scores: Sequence[Estimate]) -> str:
    values = [score.value for score in scores]
    spread = f" ({percent(stdev(values))})" if len(values) > 1 else ""
    return f"{percent(fmean(values))}{spread}"


def _published_row(dataset: Dataset) -> Cells:
    published = paper.PUBLISHED[dataset.name]
    acc, auc = ("na" if value is None else f"{value:g}" for value in (published.acc, published.auc))
    number = "" if published.number is None else f" [{published.number}]"
    return (dataset.label, f"published before{number}", "", acc, auc, "", "", "", "")


def _caption(preset: str) -> str:
    return (
        f"Table III of Gazda et al. 2021 next to our results, in percent: logistic regression on frozen features of "
        f"the last checkpoint, or of backbones without a run, by the preset {preset}. Fraction: of the pretraining "
        "set, in the paper CheXpert. F1 is that of the healthy class, as in the paper."
    )


def _notes(results: Sequence[Results], preset: str) -> Iterator[str]:
    runs: dict[int, list[Run]] = {}
    for run in (item.run for item in results if item.run):
        runs.setdefault(run.fraction_percent, []).append(run)
    datasets = [dataset for item in results for dataset in item.single if dataset.preset == preset]
    for fraction, [run, *others] in sorted(runs.items()):
        seeds = ", ".join(str(item.seed) for item in (run, *others))
        yield (
            f"Ours, {fraction} %: {run.backbone} at {run.sizes}, global batch {run.global_batch}, "
            f"{counted(run.epochs, 'epoch')}, seed{'s' if others else ''} {seeds}."
        )
    for backbone in (backbone for item in results if item.run is None for backbone in item.outside):
        yield f"{backbone.name}: {backbone.network} at {backbone.size_px} px, SHA-256 {backbone.sha256[:12]}."
    if any(item.run is None for item in results):
        yield NO_RUN_NOTE
    if any(len(of_fraction) > 1 for of_fraction in runs.values()):
        yield "Several seeds: mean and, in parentheses, standard deviation. sternum compare gives intervals over seeds."
    in_paper = [item for item in datasets if paper.in_paper(item)]
    real = sorted({item.name for item in in_paper})
    if real:
        yield PAPER_NOTE
    for name in real:
        published = paper.PUBLISHED[name]
        if published.number is not None:
            remark = f" ({published.remark})" if published.remark else ""
            yield f"[{published.number}] {published.reference}{remark}."
        else:
            yield f"No earlier result is published on {name}: {published.remark}."
    yield from dict.fromkeys(paper.share_note(item, "of ours") for item in in_paper if not paper.has_papers_share(item))
    if any(item.simulated for item in datasets):
        yield SIMULATED_NOTE
    yield from dict.fromkeys(note for item in datasets for note in overlap_notes(item))
    for label in dict.fromkeys(item.label for item in datasets):
        test_parts = {item.test for item in datasets if item.label == label}
        if len(test_parts) > 1:
            counts = ", ".join(str(images) for images in sorted(part.images for part in test_parts))
            yield f"{label}: the runs were tested on different images ({counts})."
