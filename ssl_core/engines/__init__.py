"""Engines: one optimization step on all ranks, by DDP or by DeepSpeed."""

from ssl_core.engines.config import EngineConfig, EngineSetup
from ssl_core.engines.ddp import DDPEngine
from ssl_core.engines.deepspeed import DeepSpeedEngine
from ssl_core.engines.engine import Engine
from ssl_core.model.encoder import Encoder

__all__ = ["Engine", "EngineConfig", "EngineSetup", "build_engine"]


def build_engine(setup: EngineSetup, encoder: Encoder) -> Engine:
    """Build the engine that `setup.config` names, in the open process group.

    Args:
        setup: everything that determines the engine besides the encoder
        encoder: the untrained encoder; the engine changes it in place

    Raises:
        UserError: if settings contradict each other, or DeepSpeed is not installed
    """
    return (DDPEngine if setup.config.kind == "ddp" else DeepSpeedEngine)(setup, encoder)
