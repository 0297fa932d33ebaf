"""The table of single attributes: what is known of an image without looking at it, and how far that alone leads."""

from evaluation.report.tables import Table, interval, marked_label, percent
from evaluation.results.datasets import Dataset
from evaluation.results.results import Results


def attribute_table(results: Results, dataset: Dataset) -> Table:
    """Return the test AUC of each attribute alone, in percent."""
    return Table(
        f"{marked_label(dataset)}, {dataset.preset}: AUC in percent of one attribute alone, without a fit; development "
        "images decide whether more of it counts as positive",
        ("attribute", "images", "AUC", "95 %"),
        [
            (item.attribute, str(item.images), percent(item.auc.value), interval(item.auc))
            for item in results.attribute_aucs_of(dataset)
        ],
        text_columns=1,
    )
