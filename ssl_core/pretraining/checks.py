"""What a run and its plan look at alike, before anything is written."""

import math

import numpy as np
import torch

from infra.configuration.options import key, setting
from infra.errors import UserError, require
from sharding.reading.shard_set import ShardSet
from ssl_core.model.encoder import Encoder
from ssl_core.pretraining.config import PretrainConfig


def require_equal_parts(config: PretrainConfig, world: int) -> None:
    """Raise UserError unless train.micro_batches cuts the share of each of `world` ranks into equal parts."""
    share, parts = config.data.global_batch // world, config.train.micro_batches
    require(
        share % parts == 0,
        f"{setting(config.train, 'micro_batches')} must divide a rank's share of {share} samples, so that batch norm "
        f"sees parts of equal size at every world size; try {math.gcd(share, parts)}, or another number of processes",
    )


def require_graphs_possible(config: PretrainConfig, device: torch.device, world: int) -> None:
    """Raise UserError unless CUDA graphs, if they are asked for, compute what the same kernels do one by one.

    Ranks must capture and replay a collective of NCCL alike (NCCL's manual, "Using NCCL with CUDA Graphs"), but torch
    decides on each rank whether it records or replays. And a graph overwrites what its last replay returned, such as
    the gradients of the micro-batch before.
    """
    if not config.engine.cuda_graphs:
        return
    parts = config.train.micro_batches
    for fits, needed, found in (
        (device.type == "cuda", "a GPU", "the CPU"),
        (world == 1, "one process", str(world)),
        (parts == 1, f"{key(config.train, 'micro_batches')}=1", str(parts)),
    ):
        require(fits, f"{key(config.engine, 'cuda_graphs')}=true needs {needed}, not {found}; leave it out")


@torch.no_grad()
def require_all_sizes(config: PretrainConfig, encoder: Encoder) -> None:
    """Raise UserError unless the network takes the views of every stage and small ones; a ViT is bound to one size."""
    network, stages = encoder.backbone.network, config.views_of_stages()
    asked_for: dict[int, tuple[object, str]] = {
        size_px: (config.views, "small_views") for views in stages for size_px in views.small_sizes_px
    }
    asked_for |= {views.size_px: (config.train, "stages") for views in stages[:-1]}
    for size_px, option in asked_for.items():
        try:
            network.module.eval()(torch.zeros(1, 1, size_px, size_px))
        except Exception as error:  # each network has its own way to fail
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"{setting(*option)} needs a network that takes views of {size_px} px and of {config.views.size_px} "
                f"px, but {setting(config.model, 'backbone')} does not ({reason}); leave {key(*option)} out, or take a "
                "network without positions, such as resnet50"
            ) from error
        finally:
            network.module.train()


def aliasing_warning(shards: ShardSet, config: PretrainConfig) -> str | None:
    """Return a warning if the views of any stage will alias; None if not."""
    spec, smallest_px = config.views, min(views.size_px for views in config.views_of_stages())
    rows = shards.index(0)
    shorter_side_px = int(np.median(np.minimum(rows["height"], rows["width"])))
    if spec.antialias or shorter_side_px <= 2 * smallest_px:
        return None
    repack = "" if config.train.stages else f", or pack with --shorter_side_px={smallest_px * 3 // 2}"
    return (
        f"warning: the images' shorter side is {shorter_side_px} px, more than twice the {smallest_px} px of a view, "
        f"so views show aliasing; use {key(spec, 'antialias')}=true{repack}"
    )
