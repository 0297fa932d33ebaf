"""What runs one optimisation step on all ranks: an engine per way of distributing it."""

import torch

from ssl_core.engines.ddp import DDPEngine
from ssl_core.engines.deepspeed import DeepSpeedEngine
from ssl_core.engines.engine import Engine, EngineConfig, Precision
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import OptimConfig

__all__ = ["Engine", "EngineConfig", "Precision", "build_engine"]


def build_engine(
    config: EngineConfig,
    encoder: Encoder,
    *,
    optim: OptimConfig,
    loss: LossConfig,
    precision: Precision,
    device: torch.device,
    micro_batches: int = 1,
    global_batch: int | None = None,
) -> Engine:
    """Return the engine that `config` asks for; it takes `encoder` over, and the process group that is open.

    micro_batches: parts into which each rank cuts its share (`gradient_cache`). global_batch: samples, to be
    compared with `train_batch_size` of a DeepSpeed JSON. Raises UserError when settings contradict each other or
    DeepSpeed is not installed.
    """
    if config.kind == "ddp":
        return DDPEngine(config, encoder, optim, loss, precision, device, micro_batches)
    return DeepSpeedEngine(config, encoder, optim, loss, precision, device, micro_batches, global_batch)
