"""What a run and its plan look at alike, before anything is written."""

import math

import numpy as np

from infra.errors import require
from infra.options import key, setting
from sharding.reading.shard_set import ShardSet
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.spec import ViewSpec


def require_equal_parts(config: PretrainConfig, world: int) -> None:
    """Raise UserError unless train.micro_batches cuts the share of each of `world` ranks into equal parts."""
    share, parts = config.data.global_batch // world, config.train.micro_batches
    require(
        share % parts == 0,
        f"{setting(config.train, 'micro_batches')} must divide a rank's share of {share} samples, so that batch norm "
        f"sees parts of equal size at every world size; try {math.gcd(share, parts)}, or another number of processes",
    )


def aliasing_warning(shards: ShardSet, spec: ViewSpec) -> str | None:
    """Return a warning if views will alias; None if not."""
    rows = shards.index(0)
    shorter_side_px = int(np.median(np.minimum(rows["height"], rows["width"])))
    if spec.antialias or shorter_side_px <= 2 * spec.size_px:
        return None
    return (
        f"warning: the images' shorter side is {shorter_side_px} px, more than twice {setting(spec, 'size_px')}, so "
        f"views show aliasing; use {key(spec, 'antialias')}=true, or pack with "
        f"--shorter_side_px={spec.size_px * 3 // 2}"
    )
