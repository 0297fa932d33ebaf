"""Records in `selection.json`: the checkpoint chosen without labels, and how well such choices do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from evaluation.results.scores import Estimate
from infra.errors import UserError
from infra.storage.files import write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json

SELECTION_NAME: Final = "selection.json"


@dataclass(frozen=True)
class MeasureVerdict:
    """How well one measure would have chosen a checkpoint for one dataset and preset.

    Attributes:
        dataset: label of the dataset
        preset: name of the preset
        measure: name of the measure
        chosen: name of the checkpoint that the measure prefers
        rank_correlation: Spearman correlation of the measure's goodness with the test AUC; None with fewer than three
            checkpoints, or if either is the same for all
        regret: test AUC of the best checkpoint minus that of the chosen one, at best 0; for the measure "random" the
            mean regret of all checkpoints
    """

    dataset: str
    preset: str
    measure: str
    chosen: str
    rank_correlation: Estimate | None
    regret: Estimate


@dataclass(frozen=True)
class CheckpointSelection:
    """The content of `selection.json`.

    Attributes:
        held_out: description of the measured images, as part of a sentence
        images: number of images measured
        measures: checkpoint -> measure -> value, in the order of the steps
        chosen: name of the chosen checkpoint
        why: reason for the choice
        verdicts: judgment of each measure by the labels
        left_out: measure -> why it was not computed, as part of a sentence
    """

    held_out: str
    images: int
    measures: dict[str, dict[str, float]]
    chosen: str
    why: str
    verdicts: list[MeasureVerdict]
    left_out: dict[str, str] = field(default_factory=dict)


def read_selection(run: Path) -> CheckpointSelection | None:
    """Read `run/selection.json`.

    Returns:
        The selection, None if the file does not exist.

    Raises:
        UserError: if the file is unreadable or not a selection.
    """
    path = run / SELECTION_NAME
    try:
        return read_json(path, CheckpointSelection)
    except FileNotFoundError:
        return None
    except BadJson as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete it, or probe the run again with --select=true"
        ) from error


def write_selection(run: Path, selection: CheckpointSelection) -> None:
    """Write `run/selection.json` atomically."""
    write_atomic(run / SELECTION_NAME, encode_json(selection))
