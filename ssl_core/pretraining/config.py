"""The configuration of a pretraining run."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infra.options import require_at_least, require_positive, require_seed
from sharding.reading.data_config import DataConfig
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.engines import EngineConfig, Precision
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import ModelConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.views.spec import ViewSpec


@dataclass(frozen=True)
class TrainConfig:
    """The length of the run, what it leaves behind, and when it gives up.

    Args:
        epochs: passes over the selected samples; the paper's is 100
        precision: bf16 or fp16 (autocast; weights, batch statistics and loss stay fp32) or fp32
        micro_batches: how many parts a rank takes its share of the global batch through the encoder in, one after the
            other. Gradients stay those of the whole global batch (gradient caching), at the cost of a second forward
            pass; batch norm sees one part of all ranks at a time. Divides the share
        checkpoint_every_epochs: a checkpoint at the end of every so many epochs, and of the run
        checkpoint_every_steps: and one after every so many steps, for machines that may be taken away
        log_every_steps: steps between two lines of metrics, which are means over these steps
        log_samples: write which samples each step consumed to samples/
        max_steps: stop for now after this many steps in all, with a checkpoint; the next start goes on
        world_size: processes that must have come; any number where none is given
        timeout_s: seconds after which a process that does not answer the others counts as lost
        skips: most steps in a row that are left out because their loss or gradient is not finite; in fp16 a few are at
            the start, until the scale of the loss fits
        rollbacks: most returns to the last checkpoint after that, before the run is given up
    """

    epochs: int = 100
    precision: Precision = "bf16"
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


@dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Args:
        run_folder: the folder of this run; starting again with the same one resumes it
        data: which samples, in what batches
        views: how a sample becomes two views
        model: the backbone and the projection head
        loss: the contrastive loss
        optim: the optimiser
        train: length, logs, and when to give up
        engine: how a step is computed on all processes
        checkpoints: how often the run is saved and what is kept
        seed: determines initial weights, sample order and views
        executor: what decodes and augments: dali, torchvision, or auto (DALI where it is installed)
    """

    run_folder: Path
    data: DataConfig
    views: ViewSpec = field(default_factory=ViewSpec)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
    executor: Literal["auto", "dali", "torchvision"] = "auto"

    def __post_init__(self) -> None:
        require_seed(self)
