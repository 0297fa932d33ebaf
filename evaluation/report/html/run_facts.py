"""Everything that the page says about one run, read from its folder."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from evaluation.report.shard_folders import ShardFolder, shard_folders
from evaluation.results.results import Results, read_results
from evaluation.results.selection import CheckpointSelection, read_selection
from infra.configuration import config as configuration
from infra.monitoring.hardware import Hardware, read_hardware
from infra.monitoring.metrics import read_metrics
from infra.monitoring.status import Status, read_status
from ssl_core.checkpoints.checkpoint import Checkpoint, find_checkpoints
from ssl_core.pretraining.config import PretrainConfig


@dataclass(frozen=True)
class Pretraining:
    """A pretraining as far as it has come.

    Attributes:
        config: its configuration
        config_text: the same as YAML
        metrics: logged steps
        checkpoints: its checkpoints
        data: its shards
        hardware: the machines of its starts; empty for runs of older versions
        status: its state; None if unknown
    """

    config: PretrainConfig
    config_text: str
    metrics: list[dict[str, float]]
    checkpoints: list[Checkpoint]
    data: list[ShardFolder]
    hardware: list[Hardware]
    status: Status | None

    @property
    def steps(self) -> int:
        """Steps done at the last logged one."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def epoch(self) -> float | None:
        """Epochs done at the last logged step."""
        return self.metrics[-1].get("epoch") if self.metrics else None

    @cached_property
    def losses(self) -> list[dict[str, float]]:
        """The logged steps with a finite loss."""
        return [line for line in self.metrics if math.isfinite(line.get("loss", math.nan))]

    @cached_property
    def hours(self) -> float | None:
        """Hours of training at the logged speeds, without the pauses between starts; None if no speed was logged."""
        seconds, before = 0.0, 0
        for line in self.metrics:
            speed, step = line.get("speed/images_per_s", math.nan), int(line["step"])
            if speed > 0:
                seconds += (step - before) * self.config.data.global_batch / speed
            before = step
        return seconds / 3600 if seconds else None

    @property
    def images(self) -> int | None:
        """Images that it was trained on; None if some of its shards cannot be counted on this machine."""
        counts = [folder.used.images for folder in self.data if folder.used]
        return sum(counts) if counts and len(counts) == len(self.data) else None


@dataclass(frozen=True)
class RunFacts:
    """A run, or backbones that were probed without one.

    Attributes:
        folder: its folder
        name: its name on the page
        shows_images: whether the page shows images of patients, and their keys
        pretraining: None for backbones without a run
        results: None if it has not been probed
        selection: the choice of a checkpoint without labels; None without one
    """

    folder: Path
    name: str
    shows_images: bool
    pretraining: Pretraining | None
    results: Results | None
    selection: CheckpointSelection | None


def read_facts(folder: Path, *, shows_images: bool, name: str = "") -> RunFacts:
    """Read the folder of a run or of a probe without one.

    Args:
        folder: the folder
        shows_images: whether the page shows images of patients
        name: name of the run on the page; that of the folder by default

    Raises:
        UserError: if it is the folder of neither, or a file is damaged
    """
    results, selection = read_results(folder), read_selection(folder)
    pretraining = None if results and results.run is None else _pretraining(folder)
    return RunFacts(folder, name or folder.resolve().name, shows_images, pretraining, results, selection)


def _pretraining(run: Path) -> Pretraining:
    config = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
    return Pretraining(
        config=config,
        config_text=(run / "config.yaml").read_text(encoding="utf-8"),
        metrics=read_metrics(run),
        checkpoints=find_checkpoints(run),
        data=shard_folders(config.data),
        hardware=read_hardware(run),
        status=read_status(run),
    )
