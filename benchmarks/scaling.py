"""How long a step takes on 1 to 4,096 GPUs, by a model: what each part costs, and when it matters.

Nothing here is measured on a GPU. Bytes are exact (`tests/benchmarks/test_scaling_benchmark.py` compares them with what
ranks send); times follow from bytes and from the assumptions below, each of which can be changed on the command line.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from torch import nn

from benchmarks.common import machine, table
from infra.storage.files import write_atomic
from ssl_core.model.encoder import Encoder, ModelConfig, build_encoder

AGREED_NUMBERS: Final = 5  # int64 of each rank, see ssl_core/loss/agreement.py
ROW_NUMBERS: Final = 6  # float64 of each row, see docs/loss.md
_BACKWARD_SHARE: Final = 2 / 3  # of the computation: two of the three products of each layer


@dataclass(frozen=True)
class Machine:
    """What the times rest on.

    Attributes:
        views_per_s: of one GPU in forward and backward; the bound of docs/gpu.md at 45 % of the peak, unfused
        gpus_in_node: GPUs that NVLink connects
        link_gb_s: bytes that a GPU sends over NVLink in a second
        network_gb_s: bytes that a GPU sends to other machines in a second, 400 Gbit/s less a tenth
        link_us: latency of a message over NVLink
        network_us: latency of a message to another machine
        launch_us: time to start a collective
        tcp_us: latency of a message of gloo
        bucket_mb: bytes of gradients that travel at once
        spread_percent: standard deviation of a rank's computation
        image_kb: bytes of an encoded image
        store_gb_s: what the store of the shards delivers to all machines together
        gpu_hours_to_fault: mean time between faults, for one GPU; 419 in 54 days on 16,384 of Grattafiori et al. 2024
        save_s: seconds that a checkpoint keeps the GPUs waiting
        restart_s: seconds from a fault to the first new step
    """

    views_per_s: float = 3310
    gpus_in_node: int = 8
    link_gb_s: float = 360
    network_gb_s: float = 45
    link_us: float = 3
    network_us: float = 10
    launch_us: float = 10
    tcp_us: float = 30
    bucket_mb: float = 25
    spread_percent: float = 1
    image_kb: float = 16
    store_gb_s: float = 10
    gpu_hours_to_fault: float = 50_000
    save_s: float = 0.05
    restart_s: float = 180


class Traffic(NamedTuple):
    """Bytes of each collective of a step that a rank hands over.

    Attributes:
        agreement: all-gathers over gloo
        statistics: all-reduces of batch norm, forward and backward
        projections: all-gathers of the loss
        gradients: all weights, which DDP sends in buckets
    """

    agreement: list[int]
    statistics: list[int]
    projections: list[int]
    gradients: int


def traffic_of(encoder: Encoder, share: int, projection_size: int) -> Traffic:
    """Return what a rank with `share` samples sends in a step of one micro-batch, without small views."""
    channels = [layer.num_features for layer in encoder.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    rows = 2 * share
    return Traffic(
        agreement=[8 * AGREED_NUMBERS, 8 * share],
        statistics=[8 * numbers for count in channels for numbers in (1 + 2 * count, 2 * count)],
        projections=[4 * rows * projection_size, 8 * rows * ROW_NUMBERS],
        gradients=sum(4 * parameter.numel() for parameter in encoder.parameters()),
    )


def all_reduce_s(size: float, world: int, gpus: Machine) -> float:
    """Return the time of an all-reduce by a ring or by a tree over the nodes, whichever is faster, as NCCL chooses."""
    if world == 1:
        return 0.0
    nodes = math.ceil(world / gpus.gpus_in_node)
    latency_s = (gpus.network_us if nodes > 1 else gpus.link_us) / 1e6
    ring_s = 2 * (world - 1) * latency_s
    tree_s = (
        2 * (math.ceil(math.log2(nodes)) * gpus.network_us + (min(world, gpus.gpus_in_node) - 1) * gpus.link_us) / 1e6
    )
    return gpus.launch_us / 1e6 + min(ring_s, tree_s) + 2 * (world - 1) / world * size / _bytes_per_s(world, gpus)


def all_gather_s(size: float, world: int, gpus: Machine) -> float:
    """Return the time of an all-gather by a ring, to which a rank hands over `size` bytes."""
    if world == 1:
        return 0.0
    latency_s = (gpus.network_us if world > gpus.gpus_in_node else gpus.link_us) / 1e6
    return gpus.launch_us / 1e6 + (world - 1) * (latency_s + size / _bytes_per_s(world, gpus))


def _bytes_per_s(world: int, gpus: Machine) -> float:
    return (gpus.link_gb_s if world <= gpus.gpus_in_node else gpus.network_gb_s) * 1e9


def step_of(world: int, share: int, traffic: Traffic, gpus: Machine) -> dict[str, float]:
    """Return the milliseconds of a step's parts, and what follows from their sum.

    compute: forward and backward. waiting: for the slowest of the ranks. statistics, projections: collectives within
    the step. gradients: what the backward pass does not hide. reading: what the store cannot deliver in time.
    agreement: over gloo, while the GPU works; it counts only if it is longer than all that.
    """
    compute_s = 2 * share / gpus.views_per_s
    parts = {
        "compute": compute_s,
        "waiting": compute_s * gpus.spread_percent / 100 * math.sqrt(2 * math.log(world)) if world > 1 else 0.0,
        "statistics": sum(all_reduce_s(size, world, gpus) for size in traffic.statistics),
        "projections": sum(all_gather_s(size, world, gpus) for size in traffic.projections),
        "gradients": _gradients_s(world, traffic.gradients, compute_s, gpus),
    }
    busy_s = sum(parts.values())
    agreement_s = len(traffic.agreement) * (world - 1) * gpus.tcp_us / 1e6
    read_s = world * share * gpus.image_kb * 1e3 / (gpus.store_gb_s * 1e9)
    step_s = max(busy_s, agreement_s, read_s)
    figures = {name: round(1000 * seconds, 3) for name, seconds in parts.items()}
    return {
        "gpus": world,
        "share": share,
        **figures,
        "agreement": round(1000 * agreement_s, 3),
        "reading": round(1000 * read_s, 3),
        "step": round(1000 * step_s, 3),
        "images_per_s": round(world * share / step_s),
        "efficiency_percent": round(100 * compute_s / step_s, 1),
        **_faults(world, gpus),
    }


def _gradients_s(world: int, size: int, compute_s: float, gpus: Machine) -> float:
    """Return how long the GPU waits for gradients: for the last bucket, and for what the backward pass is too short."""
    if world == 1:
        return 0.0
    buckets = max(1, round(size / (gpus.bucket_mb * 1e6)))
    bucket_s = all_reduce_s(size / buckets, world, gpus)
    return max(bucket_s, buckets * bucket_s - _BACKWARD_SHARE * compute_s)


def _faults(world: int, gpus: Machine) -> dict[str, float]:
    """Return the interval of checkpoints that loses least (Young 1974), and the share of time that faults cost."""
    between_s = gpus.gpu_hours_to_fault * 3600 / world
    every_s = math.sqrt(2 * gpus.save_s * between_s)
    lost = gpus.save_s / every_s + (every_s / 2 + gpus.restart_s) / between_s
    return {
        "hours_to_fault": round(between_s / 3600, 1),
        "checkpoint_every_s": round(every_s),
        "lost_percent": round(100 * lost, 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compute, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64, 128, 256, 1024, 4096])
    parser.add_argument("--share", type=int, default=256, help="samples of a GPU in a step")
    parser.add_argument("--global_batch", type=int, help="samples of a step on all GPUs, instead of --share")
    parser.add_argument("--backbone", default="wide_resnet50_2")
    for field in fields(Machine):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options = parser.parse_args(arguments)
    gpus = Machine(**{field.name: getattr(options, field.name) for field in fields(Machine)})
    encoder = build_encoder(ModelConfig(options.backbone), seed=0)
    figures = []
    for world in options.worlds:
        share = max(1, options.global_batch // world) if options.global_batch else options.share
        figures.append(step_of(world, share, traffic_of(encoder, share, 128), gpus))
    shown = [name for name in figures[0] if name not in ("share", "hours_to_fault")]
    print(table(shown, [[f"{figure[name]:g}" for name in shown] for figure in figures]))
    content: dict[str, Any] = {
        "estimates": True,
        "backbone": options.backbone,
        "assumptions": asdict(gpus),
        "milliseconds_and_rates": figures,
        "machine": machine("torch"),
    }
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
