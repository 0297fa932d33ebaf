"""The settings of the training loop, below all layers so that each of them can name these options in its errors."""

import re
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from infra.configuration.options import require_at_least, require_positive, setting
from infra.errors import require
from infra.ranks.devices import DeviceName

Precision = Literal["bf16", "fp16", "fp32"]
PrecisionChoice = Literal["auto", "bf16", "fp16", "fp32"]

_EARLY_STAGE: Final = re.compile(r"([1-9][0-9]{0,5})@([1-9][0-9]{0,5})")


class EarlyStage(NamedTuple):
    """Epochs whose views have a size of their own, as in `64@4`.

    Attributes:
        size_px: width and height of these views
        epochs: number of these epochs
    """

    size_px: int
    epochs: int


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, precision, when to save, and when to give up.

    Args:
        epochs: passes over the selected samples; 100 in the paper
        stages: sizes of the views in the first epochs, before that of views.size_px, as SIZE@EPOCHS: [64@4] means views
            of 64 px for four epochs
        device: cuda, cpu, or auto (the GPU; the CPU only if the machine has no GPU or CUDA_VISIBLE_DEVICES hides it)
        precision: bf16 or fp16 (autocast; weights, batch statistics and loss stay fp32), fp32, or auto: what the device
            computes fastest, which is bf16 if it has matrix units for it, else fp16 on a GPU and fp32 on a CPU; a run
            that resumes keeps the precision of its checkpoint
        micro_batches: parts into which each rank cuts its share of the global batch, to save memory; must divide the
            share. The gradient stays that of the whole global batch (gradient caching) at the cost of a second forward
            pass; batch norm sees one part of all ranks at a time
        checkpoint_every_epochs: epochs between two checkpoints; the end of the run always has one
        checkpoint_every_steps: also save after each multiple of this many steps, for preemptible machines
        log_every_steps: steps between two lines of metrics, which are means over these steps
        log_samples: record the samples of each step in samples/
        max_steps: stop this start after this many steps in total, with a checkpoint; the next start resumes
        world_size: required number of processes; any number if not given
        timeout_s: seconds without a response after which a process counts as lost
        skips: most steps in a row to skip because their loss or gradient is not finite; fp16 skips a few at the start,
            until the loss scale fits
        rollbacks: most returns to the last checkpoint after too many skips, before the run fails
    """

    epochs: int = 100
    stages: list[str] = field(default_factory=list)
    device: DeviceName = "auto"
    precision: PrecisionChoice = "auto"
    micro_batches: int = 1
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    log_every_steps: int = 10
    log_samples: bool = False
    max_steps: int | None = None
    world_size: int | None = None
    timeout_s: float = 600.0
    skips: int = 8
    rollbacks: int = 2

    def __post_init__(self) -> None:
        counts = ("epochs", "micro_batches", "log_every_steps", "max_steps", "world_size")
        for name in (*counts, "checkpoint_every_epochs", "checkpoint_every_steps"):
            require_at_least(self, name, 1, "leave it out for the default")
        for name in ("skips", "rollbacks"):
            require_at_least(self, name, 0, "try 2")
        require_positive(self, "timeout_s", "try 600")
        for text in self.stages:
            require(
                _EARLY_STAGE.fullmatch(text) is not None,
                f"{setting(self, 'stages')}: {text!r} must be SIZE@EPOCHS with whole numbers; try [64@4] for views of "
                "64 px in the first four epochs",
            )

    @property
    def settled_precision(self) -> Precision:
        """The precision, if the configuration is settled (`pretraining.resume.settled`)."""
        assert self.precision != "auto", "settle the configuration first"
        return self.precision

    @property
    def early_stages(self) -> list[EarlyStage]:
        """The stages before the last one."""
        found = (_EARLY_STAGE.fullmatch(text) for text in self.stages)
        return [EarlyStage(int(stage[1]), int(stage[2])) for stage in found if stage]
