"""The log of samples, `samples/rank-R.jsonl`: which samples each rank used in each step, to check the order.

One line a step: the step, the world size, the samples' 64-bit identities in hexadecimal (JSON's numbers end at 53
bits), their epochs, the positions of masked samples in these lists, and by position the sibling that a second view
shows, if any does. Each rank writes its own file, so a step of the run is the lines of all ranks that took part in it,
whatever the world size was at the time.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, TypeVar

import numpy as np

from infra.arrays import Bool, Int64, UInt64
from infra.errors import UserError
from infra.log import say
from infra.ranks.processes import Ranks
from infra.storage.append_file import AppendFile
from infra.storage.files import disk_errors, fsync_path, regular_size
from infra.storage.json_files import BadJson, decode_json, encode_line

FOLDER: Final = "samples"

L = TypeVar("L")


class LoggedStep(NamedTuple):
    """The samples of one step on all ranks, in rank order, each array (global_batch,).

    Attributes:
        step: number of the step
        epochs: epoch of each sample
        samples: identities of the samples
        valid: False for a masked sample
        second_samples: identities of the images that the second views show: the samples or siblings
    """

    step: int
    epochs: Int64
    samples: UInt64
    valid: Bool
    second_samples: UInt64


@dataclass(frozen=True)
class _Line:
    step: int
    world: int
    epochs: list[int]
    samples: list[str]
    masked: list[int]
    siblings: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _StepOnly:
    """The only field that truncation reads of a line."""

    step: int


class SampleLog:
    """One rank's file, which gets one line for each step.

    The first rank calls `truncate_sample_log` before any rank opens its file.
    """

    def __init__(self, run_folder: Path, ranks: Ranks) -> None:
        """Open the file.

        Raises:
            UserError: if the file cannot be written
        """
        self._file, self._world = AppendFile(_path(run_folder, ranks.rank)), ranks.world

    def write(
        self,
        step: int,
        epochs: Int64,
        samples: UInt64,
        valid: Bool,
        second_samples: UInt64 | None = None,
    ) -> None:
        """Append this rank's samples of a step, each array (local_batch,); second views show the samples by default."""
        siblings = [] if second_samples is None else np.flatnonzero(second_samples != samples).tolist()
        line = {
            "step": step,
            "world": self._world,
            "epochs": epochs.tolist(),
            "samples": [f"{sample:016x}" for sample in samples.tolist()],
            "masked": np.flatnonzero(~valid).tolist(),
        }
        if second_samples is not None and siblings:
            line["siblings"] = {position: f"{second_samples[position]:016x}" for position in siblings}
        self._file.write(encode_line(line))

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def truncate_sample_log(run_folder: Path, first_step: int) -> None:
    """Drop `first_step` and all later steps, which will be made again, from the files of all ranks.

    This also drops a last line that a power cut left unfinished. A file that is damaged before is cut there, with a
    warning: the run goes on, and `read_sample_log` will refuse its log.
    """
    for path in _paths(run_folder):
        kept_bytes = 0
        try:
            for content, line in _lines(path, _StepOnly):
                if line.step >= first_step:
                    break
                kept_bytes += len(content)
        except UserError as error:
            say(f"warning: {error}; {path.name} is cut there")
        with disk_errors(path):
            if kept_bytes < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(kept_bytes)
                fsync_path(path)


def read_sample_log(run_folder: Path) -> list[LoggedStep]:
    """Return all logged steps in order.

    A killed run may have logged its last step on some ranks only; that step is left out.

    Raises:
        UserError: if any other step is missing or logged twice on any rank, or a file is damaged
    """
    steps: dict[int, dict[int, _Line]] = {}  # by step and rank
    for path in _paths(run_folder):
        rank = int(path.stem.removeprefix("rank-"))
        for _, line in _lines(path, _Line):
            ranks = steps.setdefault(line.step, {})
            if rank in ranks:
                raise UserError(f"{path} has step {line.step} twice; the log of this run is not reliable")
            ranks[rank] = line
    whole = sorted(steps)
    if whole and not _is_whole(steps[whole[-1]]):
        whole.pop()
    for number, step in enumerate(whole, start=whole[0] if whole else 0):
        if number != step or not _is_whole(steps[step]):
            raise UserError(
                f"{run_folder / FOLDER} lacks step {number} of some rank; the log of this run is not reliable"
            )
    return [_merge(step, [steps[step][rank] for rank in sorted(steps[step])]) for step in whole]


def _is_whole(ranks: dict[int, _Line]) -> bool:
    """Return whether exactly the ranks of this step's world logged it."""
    return all(line.world == len(ranks) for line in ranks.values()) and max(ranks) < len(ranks)


def _merge(step: int, lines: list[_Line]) -> LoggedStep:
    valid, shown = [], []
    for line in lines:
        valid.append(np.ones(len(line.samples), np.bool_))
        valid[-1][line.masked] = False
        shown += [line.siblings.get(position, sample) for position, sample in enumerate(line.samples)]
    return LoggedStep(
        step,
        np.array([epoch for line in lines for epoch in line.epochs], np.int64),
        np.array([int(sample, 16) for line in lines for sample in line.samples], np.uint64),
        np.concatenate(valid),
        np.array([int(sample, 16) for sample in shown], np.uint64),
    )


def _path(run_folder: Path, rank: int) -> Path:
    return run_folder / FOLDER / f"rank-{rank}.jsonl"


def _paths(run_folder: Path) -> list[Path]:
    return sorted((run_folder / FOLDER).glob("rank-*.jsonl"))


def _lines(path: Path, line_type: type[L]) -> Iterator[tuple[bytes, L]]:
    """Yield the lines of a file, as bytes and decoded, up to an unfinished one."""
    regular_size(path)
    with path.open("rb") as file:
        for number, content in enumerate(file, start=1):
            if not content.endswith(b"\n"):
                return
            try:
                yield content, decode_json(content, line_type)
            except BadJson as error:
                raise UserError(
                    f"{path} is damaged in line {number} ({error}); the log of this run is not reliable"
                ) from error
