"""`selection.json` of a run: which checkpoint was chosen without labels, and how well such choices do."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from evaluation.results.results import Estimate
from infra.errors import UserError
from infra.files import write_atomic

NAME: Final = "selection.json"


@dataclass(frozen=True)
class MeasureVerdict:
    """How well a measure would have chosen a checkpoint for one dataset and preset.

    rank_correlation: Spearman's, of the measure's goodness with the test AUC; None of fewer than three checkpoints, or
    where either is the same for all. regret: the test AUC of the best checkpoint less that of the chosen one, 0 at
    best. `random` has the mean regret of all checkpoints.
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

    held_out: whose images the measures were taken of. images: how many. measures: by checkpoint, in the order of their
    steps. chosen and why: what `choose_checkpoint` says; verdicts: what the labels say of it afterwards.
    """

    held_out: str
    images: int
    measures: dict[str, dict[str, float]]
    chosen: str
    why: str
    verdicts: list[MeasureVerdict]


def read_selection(run: Path) -> CheckpointSelection | None:
    """Read `run/selection.json`; None where no choice was asked for, UserError when it is not one of ours."""
    path = run / NAME
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=CheckpointSelection)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; delete it, or probe the run again with --select=true"
        ) from error


def write_selection(run: Path, selection: CheckpointSelection) -> None:
    """Write `run/selection.json` atomically."""
    write_atomic(run / NAME, msgspec.json.format(msgspec.json.encode(selection), indent=1))
