"""The table of how well parts that were not drawn at random are told apart."""

from evaluation.report.tables import Table, interval, marked_label, percent
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results


def shift_table(results: Results, dataset: Dataset) -> Table:
    """Return the AUC of telling the test part from the development part within a class, beside its null."""
    asked = "official test part or development part?" if dataset.fitted_on is None else "tested set or fitted set?"
    return Table(
        f"{marked_label(dataset)}, {dataset.preset}: {asked} AUC in percent among images of one class, "
        "cross-validated by patient; 50 if both parts are drawn alike. Null: as many patients drawn at random",
        ("features", "class", "development", "test", "AUC", "95 %", "null", "95 %"),
        [
            (
                item.features,
                item.group,
                str(item.development),
                str(item.test),
                percent(item.auc.value),
                interval(item.auc),
                percent(item.null.value),
                interval(item.null),
            )
            for item in results.shifts_of(dataset)
        ],
    )
