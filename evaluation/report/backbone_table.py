"""Table of the backbones that a run did not train."""

from evaluation.report.tables import Table
from evaluation.results.results import Results

_SHOWN_DIGITS = 16


def backbone_table(results: Results) -> Table:
    """Return network, input and file of each backbone, and what the file holds beside the network."""
    return Table(
        "Backbones from elsewhere: their input on the scale 0 to 1, and what each file gave",
        ("name", "network", "file", "SHA-256", "what it gave", "px", "mean", "std"),
        [
            (
                *(item.name, item.network, item.file, item.sha256[:_SHOWN_DIGITS], item.summary),
                *(str(item.size_px), _numbers(item.mean), _numbers(item.std)),
            )
            for item in results.outside
        ],
        text_columns=5,
    )


def _numbers(values: list[float]) -> str:
    """Write a value for each channel; one if all are equal."""
    texts = [f"{value:.3f}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)
