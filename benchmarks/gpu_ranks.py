"""What the ranks of benchmarks/gpu.py compute: gradients of a batch spread in several ways, and engines' steps."""

import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from ssl_core.engines import Engine, EngineConfig, EngineSetup, build_engine
from ssl_core.engines.train_config import Precision
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.encoder import Backbone, ModelConfig, build_encoder
from ssl_core.model.optimizer import OptimConfig

_SAMPLES: Final = 16  # of the batch that is spread
_SIZE_PX: Final = 64
_STEPS: Final = 4
_TIMED_STEPS: Final = 20


@dataclass(frozen=True)
class Scale:
    """How much the stages do, and where.

    Attributes:
        devices: of each rank; two ranks share the only GPU of a machine
        size_px: width and height of a view
        local_batch: samples of a rank and step
        batches: batches of views
        images: simulated radiographs
        loss_rows: N of the loss
        backbone: of the step that is timed
    """

    devices: tuple[torch.device, ...]
    size_px: int
    local_batch: int
    batches: int
    images: int
    loss_rows: tuple[int, ...]
    backbone: str

    @property
    def on_gpu(self) -> bool:
        """Whether the ranks have GPUs."""
        return self.devices[0].type == "cuda"

    @property
    def gpus(self) -> int:
        """Number of GPUs that the ranks have."""
        return len(set(self.devices)) if self.on_gpu else 0

    @staticmethod
    def of_machine(reduced: bool) -> "Scale":
        """Return the scale for the GPUs of this machine, or a small one for its CPU."""
        if reduced:
            return Scale((torch.device("cpu"),) * 2, 32, 8, 5, 24, (64, 600), "resnet18")
        gpus = torch.cuda.device_count()
        devices = [torch.device("cuda", rank % gpus) for rank in range(max(2, gpus))]
        return Scale(tuple(devices), 224, 256, 200, 2048, (256, 4096, 65_536, 1_048_576), "wide_resnet50_2")


def on_devices(scale: Scale, world: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call `function(rank, device, *arguments)` in `world` processes of one group; return the first one's result."""
    with tempfile.TemporaryDirectory(prefix="sternum-ranks-") as folder:
        start_processes(_enter, (scale, world, folder, function, arguments), nprocs=world, start_method="spawn")  # type: ignore[no-untyped-call]
        return torch.load(Path(folder, "result"), weights_only=True)


def _enter(
    rank: int, scale: Scale, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    device = scale.devices[rank]
    if device.type == "cuda":
        torch.cuda.set_device(device)
    own = len(set(scale.devices[:world])) == world  # NCCL wants a GPU for each rank
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,cuda:{'nccl' if own else 'gloo'}"
    dist.init_process_group(backend, init_method=f"file://{folder}/store", rank=rank, world_size=world)
    result = function(rank, device, *arguments)
    dist.barrier()
    if rank == 0:
        torch.save(result, Path(folder, "result"))
    dist.destroy_process_group()


def compare_shares(scale: Scale) -> dict[str, float]:
    """Return by case the error of the gradient of a batch that is spread over ranks.

    In fp32 it is the distance from one rank's gradient, relative to its norm. In bf16 rounding alone is large, so it is
    the distance from one rank's gradient in fp32, relative to that of one rank's in bf16.
    """
    worlds = [world for world in (2, 4, 8) if world <= len(scale.devices)]
    cases: list[tuple[Precision, int]] = [("fp32", 1), ("bf16", 1), ("fp32", 2), ("bf16", 2)]
    errors = {}
    alone = on_devices(scale, 1, partial(_gradients, shares=(_SAMPLES,)), cases)
    for world in worlds:
        even = (_SAMPLES // world,) * world
        rest = _SAMPLES - 2 * (world - 2)
        for shares in (even, (*(2,) * (world - 2), rest, 0)):  # the last rank is empty
            spread = on_devices(scale, world, partial(_gradients, shares=shares), cases)
            for (precision, parts), found, plain in zip(cases, spread, alone, strict=True):
                if parts > 1 and shares != even:
                    continue  # its parts are other sets of samples
                exact = alone[cases.index(("fp32", parts))]
                unit = exact.norm() if precision == "fp32" else (plain - exact).norm()
                errors[f"{'+'.join(map(str, shares))} {precision} {parts} part(s)"] = float(
                    (found - exact).norm() / unit
                )
    return errors


def _gradients(
    rank: int, device: torch.device, cases: list[tuple[Precision, int]], shares: tuple[int, ...]
) -> list[Tensor]:
    """Return the whole gradient in float64 of each case."""
    rows = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    found = []
    for precision, parts in cases:
        engine = _engine(EngineConfig(), precision, device, parts)
        engine.backward([view[rows].to(device) for view in _two_views(_SAMPLES, _SIZE_PX)])
        found.append(torch.cat([value.double().flatten().cpu() for value in engine.gradients().values()]))
    return found


def _engine(config: EngineConfig, precision: Precision, device: torch.device, parts: int = 1) -> Engine:
    encoder = build_encoder(ModelConfig("resnet18", projection_width=64, projection_size=32), 0)
    smooth(encoder)
    setup = EngineSetup(config, OptimConfig(), LossConfig(), precision, device, micro_batches=parts)
    return build_engine(setup, encoder)


def smooth(module: nn.Module) -> None:
    """Replace layers with kinks, over which rounding takes gradients to other values."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.SiLU())
        elif isinstance(child, nn.MaxPool2d):
            setattr(module, name, nn.AvgPool2d(3, 2, 1))
        else:
            smooth(child)


def _two_views(samples: int, size_px: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.interpolate(torch.randn(samples, 1, 4, 4, generator=generator), size=size_px)
    return [images + 0.3 * torch.randn(images.shape, generator=generator) for _ in range(2)]


def compare_engines(scale: Scale) -> dict[str, list[float]]:
    """Return the losses of some steps by each engine, in the same order of samples."""
    stages: tuple[Literal[0, 1, 2], ...] = (0, 1, 2) if scale.on_gpu else (1,)
    kinds: dict[str, tuple[EngineConfig, Precision]] = {"ddp bf16": (EngineConfig(), "bf16")}
    kinds |= {f"zero-{stage} bf16": (EngineConfig("deepspeed", zero_stage=stage), "bf16") for stage in stages}
    kinds["ddp fp16"] = (EngineConfig(), "fp16")
    if scale.on_gpu:
        kinds["ddp bf16 compiled"] = (EngineConfig(compile=True), "bf16")
    world = len(scale.devices) if scale.gpus != 1 else 1  # DeepSpeed takes NCCL on GPUs
    losses = {name: on_devices(scale, world, _losses, *kind) for name, kind in kinds.items()}
    if scale.on_gpu:
        graphs = EngineConfig(compile=True, cuda_graphs=True)
        losses["ddp bf16 CUDA graphs"] = on_devices(scale, 1, _losses, graphs, "bf16")
    return losses


def _losses(rank: int, device: torch.device, config: EngineConfig, precision: Precision) -> list[float]:
    engine = _engine(config, precision, device)
    views = [view.to(device) for view in _two_views(_SAMPLES, _SIZE_PX)]
    share = _SAMPLES // dist.get_world_size()
    losses: list[float] = []
    skipped = 0
    while len(losses) < _STEPS:
        report = engine.backward([view[rank * share : (rank + 1) * share] for view in views])
        if engine.update(1e-4):
            losses.append(float(report.loss))
        else:
            skipped += 1
        if skipped > 20:
            raise AssertionError(f"{skipped} steps were skipped")
    return losses


def measure_step(scale: Scale) -> dict[str, float]:
    """Return how fast one process steps, beside the bare network, and how often a step waits for the GPU."""
    device = scale.devices[0]
    views = [view.to(device) for view in _two_views(scale.local_batch, scale.size_px)]
    counted = torch.ones(scale.local_batch, dtype=torch.bool)  # a training always says so, which a graph depends on
    figures = {}
    kinds = {"": EngineConfig()}
    if scale.on_gpu:
        kinds |= {"_compiled": EngineConfig(compile=True)}
        kinds |= {"_cuda_graphs": EngineConfig(compile=True, cuda_graphs=True)}
    for kind, config in kinds.items():
        encoder = build_encoder(ModelConfig(scale.backbone), 0)
        engine = build_engine(EngineSetup(config, OptimConfig(), LossConfig(), "bf16", device), encoder)

        def step(engine: Engine = engine) -> None:
            engine.backward(views, counted=counted)
            engine.update(1e-4)

        seconds = _seconds(step, device)
        figures[f"views_per_s{kind}"] = 2 * scale.local_batch / seconds
        if device.type == "cuda" and not config.compile:
            figures["waits_in_a_step"] = _waits(step)
    bare = _seconds(_bare_step(scale.backbone, views, device), device)
    return figures | {"bare_views_per_s": 2 * scale.local_batch / bare}


def _bare_step(backbone: str, views: list[Tensor], device: torch.device) -> Callable[[], None]:
    """Return forward, backward and update of the backbone alone, in one process, as PyTorch's tutorials write it."""
    network = Backbone(backbone).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    images = torch.cat(views).to(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            value = network(images).float().square().mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return the time of a step, after some that warm up."""
    steps = _TIMED_STEPS if device.type == "cuda" else 1
    for number in range(-max(1, steps // 4), steps):
        if number == 0:
            _wait(device)
            began_s = time.perf_counter()
        step()
    _wait(device)
    return (time.perf_counter() - began_s) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _waits(step: Callable[[], None]) -> int:
    """Count the operations of a step for which the host waits for the GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)
