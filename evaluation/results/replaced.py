"""Results that a new probe of the same folder replaces."""

from collections.abc import Collection
from pathlib import Path

from evaluation.results.datasets import TaskKey
from evaluation.results.results import RESULTS_NAME, read_results
from infra.errors import UserError
from infra.log import say


def warn_of_lost_results(folder: Path, coming: Collection[TaskKey]) -> None:
    """Say in one line which tasks the results of a folder hold that a new probe leaves out, if there are any.

    Args:
        folder: the folder of the results
        coming: label and preset of each task that the new probe holds, without the questions
    """
    path = folder / RESULTS_NAME
    try:
        present = read_results(folder)
    except UserError:  # damaged or of another version: a new probe is the remedy, but it ends these results
        say(f"warning: {path} cannot be read by this Sternum; it will be replaced")
        return
    keys = [TaskKey(dataset.task_label, dataset.preset) for dataset in present.datasets] if present else []
    lost: dict[str, list[str]] = {}
    for label, preset in dict.fromkeys(keys):
        if (label, preset) not in coming:
            lost.setdefault(label, []).append(preset)
    if lost:
        names = ", ".join(f"{label!r} by {' and '.join(presets)}" for label, presets in lost.items())
        say(
            f"warning: {path} holds {names}, which this probe leaves out; it will be replaced, and so will "
            "predictions.csv and probes/: name all sets and presets in one probe, or copy the folder first"
        )
