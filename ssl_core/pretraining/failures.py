"""What ends a run that had correct input: its errors, in lines that name the setting to change."""

import re

import torch

from infra.configuration.options import key, setting
from infra.errors import RunFailed
from infra.ranks.processes import Ranks
from ssl_core.engines import EngineConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.pretraining.config import PretrainConfig, TrainConfig


class Diverged(Exception):
    """More steps in a row than allowed had a loss or gradient that is not finite."""


def out_of_memory(config: PretrainConfig, ranks: Ranks, step: int, error: torch.OutOfMemoryError) -> RunFailed:
    """Return the error that names the setting to change; torch's own text is long and names none of ours."""
    share, parts = config.data.global_batch // ranks.world, config.train.micro_batches
    more = next((number for number in range(parts + 1, share + 1) if share % number == 0), None)
    wanted = re.search(r"[Tt]ried to allocate [\d.]+ \w+", str(error))
    way_out = f"{key(config.train, 'micro_batches')}={more} in a new run folder, or " if more else ""
    return RunFailed(
        f"the GPU of rank {ranks.rank} has no memory left at step {step} with {setting(config.train, 'micro_batches')} "
        f"and {share} samples a rank ({wanted[0] if wanted else 'out of memory'}); use {way_out}more GPUs"
    )


def remedy() -> str:
    """Say what helps a run that diverged."""
    rate, norm = key(OptimConfig, "learning_rate"), key(EngineConfig, "max_gradient_norm")
    precision = key(TrainConfig, "precision")
    return f"start again in a new run folder with a lower {rate}, {norm}=1 or {precision}=fp32"
