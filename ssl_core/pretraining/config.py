"""The configuration of a pretraining run."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from infra.configuration.options import require_seed, setting
from infra.errors import UserError, require
from infra.monitoring.trackers import LogConfig
from sharding.reading.data_config import DataConfig
from ssl_core.checkpoints.retention import CheckpointConfig
from ssl_core.engines import EngineConfig
from ssl_core.engines.train_config import TrainConfig
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import ModelConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.views.spec import ViewSpec

__all__ = ["PretrainConfig", "TrainConfig"]


@dataclass(frozen=True)
class PretrainConfig:
    """Configuration of one pretraining run.

    Args:
        run_folder: folder of this run; a second start with the same folder resumes the run
        data: the samples, and how they form batches
        views: how to draw the views of a sample
        model: backbone and projection head
        loss: the contrastive loss
        optim: the optimizer and its schedule
        train: length, precision, when to save, and when to give up
        engine: how the ranks share the work of a step
        log: experiment trackers that receive the metrics too
        checkpoints: which checkpoints to keep and where to copy them; train.checkpoint_every_* sets how often to save
        seed: determines initial weights, sample order and views
        executor: library that decodes and augments images: dali, torchvision, or auto (DALI if installed)
    """

    run_folder: Path
    data: DataConfig
    views: ViewSpec = field(default_factory=ViewSpec)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
    executor: Literal["auto", "dali", "torchvision"] = "auto"

    def __post_init__(self) -> None:
        require_seed(self)
        stages, train = setting(self.train, "stages"), self.train
        epochs = sum(stage.epochs for stage in train.early_stages)
        require(
            epochs < train.epochs or not epochs,
            f"{stages} takes {epochs} epochs, which leaves none of {setting(train, 'epochs')} for the last stage, that "
            f"of {setting(self.views, 'size_px')}; name only the stages before it, or train longer",
        )
        try:
            self.views_of_stages()
        except UserError as error:
            raise UserError(f"{stages}: {error}") from error

    def views_of_stages(self) -> list[ViewSpec]:
        """Return the views of each stage; those of the last one are `views`."""
        return [*(replace(self.views, size_px=stage.size_px) for stage in self.train.early_stages), self.views]
