"""The table of what each value of C reached: how much the choice of C decides."""

from collections.abc import Sequence

from evaluation.report.tables import Table, marked_label, percent
from evaluation.results.datasets import Dataset
from evaluation.results.rows import ProbeResult


def c_path_table(dataset: Dataset, rows: Sequence[ProbeResult]) -> Table:
    """Return the validation and test AUC of the given rows at every C."""
    paths = [(row.features, row.c_path) for row in rows if row.c_path]
    grid = [f"{tried.c:g}" for tried in paths[0][1]] if paths else []
    cells = []
    for features, path in paths:
        cells.append((features, "validation", *(f"{100 * tried.validation_auc:.2f}" for tried in path)))
        cells.append((features, "its standard error", *(f"{100 * tried.standard_error:.2f}" for tried in path)))
        if all(tried.test_auc is not None for tried in path):
            cells.append((features, "test", *(percent(tried.test_auc or 0.0) for tried in path)))
    return Table(
        f"{marked_label(dataset)}, {dataset.preset}: AUC in percent at every C. Validation chooses C; the test part "
        "does not. Where validation is level and the test part is not, the score depends on a choice by chance.",
        ("features", "AUC", *grid),
        cells,
    )
