"""The paper's Table III with ours in it: one run for each fraction of the pretraining set."""

from collections.abc import Iterator, Sequence
from typing import Final

from evaluation.report.tables import Table, interval, label, percent
from evaluation.results import paper
from evaluation.results.notes import PAPER_NOTE, SIMULATED_NOTE, overlap_notes
from evaluation.results.results import Dataset, ProbeResult, Results, last_checkpoint
from sharding.format.fractions import FRACTIONS_PERCENT

HEADER: Final = ("dataset", "features", "fraction", "ACC", "AUC", "95 %", "SEN", "SPE", "F1")

Cells = tuple[str, ...]


def table_iii(results: Sequence[Results], preset: str) -> Table:
    """Set the last checkpoint of each run beside the paper's figures.

    results: at most one for each fraction. For every dataset and fraction our row, if a run has one, then the paper's;
    then the result published before. Simulated datasets, and tasks that are not the paper's, stand alone.
    """
    by_fraction = {found.run.fraction_percent: found for found in results}
    assert len(by_fraction) == len(results), "one run for each fraction"
    datasets = {dataset.label: dataset for found in results for dataset in found.datasets if dataset.preset == preset}
    cells = [row for dataset in datasets.values() for row in _rows(by_fraction, dataset)]
    return Table(_caption(preset), HEADER, cells, text_columns=3, notes=list(_notes(by_fraction, preset)))


def _rows(by_fraction: dict[int, Results], of_any: Dataset) -> Iterator[Cells]:
    """Yield all rows of one dataset; each run's own account of it says whether pretraining saw its test part."""
    in_paper = paper.in_paper(of_any)
    for fraction in FRACTIONS_PERCENT:
        for dataset, last in _probed(by_fraction.get(fraction), of_any):
            yield _our_row(dataset, last, fraction)
        if in_paper:
            figures = (f"{value:.1f}" for value in paper.TABLE_III[of_any.name][fraction])
            acc, auc, sen, spe, f1 = figures
            yield (of_any.label, "paper", f"{fraction} %", acc, auc, "", sen, spe, f1)
    if in_paper:
        yield _published_row(of_any)


def _probed(found: Results | None, of_any: Dataset) -> list[tuple[Dataset, ProbeResult]]:
    """Return a run's dataset of this label and preset with its last checkpoint, or nothing."""
    datasets = found.datasets if found else []
    same = [item for item in datasets if (item.label, item.preset) == (of_any.label, of_any.preset)]
    lasts = [(item, last_checkpoint(found.rows_of(item))) for item in same] if found else []
    return [(item, last) for item, last in lasts if last]


def _our_row(dataset: Dataset, last: ProbeResult, fraction: int) -> Cells:
    scores = last.scores
    return (
        label(dataset),
        f"ours, {last.features}",
        f"{fraction} %",
        percent(scores.acc.value),
        percent(scores.auc.value),
        interval(scores.auc),
        percent(scores.sen.value),
        percent(scores.spe.value),
        percent(scores.f1_negative.value),
    )


def _published_row(dataset: Dataset) -> Cells:
    published = paper.PUBLISHED[dataset.name]
    acc, auc = ("na" if value is None else f"{value:g}" for value in (published.acc, published.auc))
    number = "" if published.number is None else f" [{published.number}]"
    return (dataset.label, f"published before{number}", "", acc, auc, "", "", "", "")


def _caption(preset: str) -> str:
    return (
        f"Table III of Gazda et al. 2021 beside ours, in percent: logistic regression on frozen features of the last "
        f"checkpoint, by the preset {preset}. Fraction: of the pretraining set, in the paper CheXpert. "
        "F1 is that of the healthy class, as the paper's is."
    )


def _notes(by_fraction: dict[int, Results], preset: str) -> Iterator[str]:
    datasets = [item for found in by_fraction.values() for item in found.datasets if item.preset == preset]
    for fraction, found in sorted(by_fraction.items()):
        run = found.run
        yield (
            f"Ours, {fraction} %: {run.backbone} at {run.size_px} px, global batch {run.global_batch}, "
            f"{run.epochs:.4g} epochs, seed {run.seed}."
        )
    real = sorted({item.name for item in datasets if paper.in_paper(item)})
    if real:
        yield PAPER_NOTE
    for name in real:
        published = paper.PUBLISHED[name]
        if published.number is not None:
            remark = f" ({published.remark})" if published.remark else ""
            yield f"[{published.number}] {published.reference}{remark}."
        else:
            yield f"Nothing was published before on {name}: {published.remark}."
    if any(item.simulated for item in datasets):
        yield SIMULATED_NOTE
    yield from dict.fromkeys(note for item in datasets for note in overlap_notes(item))
    for shown in dict.fromkeys(item.label for item in datasets):
        tested = {item.test for item in datasets if item.label == shown}
        if len(tested) > 1:
            counts = ", ".join(str(images) for images in sorted(part.images for part in tested))
            yield f"{shown}: the runs were not tested on the same images (there are {counts})."
