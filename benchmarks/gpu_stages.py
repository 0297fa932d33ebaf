"""The stages of benchmarks/gpu.py; each checks something and returns figures, or raises."""

import argparse
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from benchmarks.gpu_faults import measure_faults
from benchmarks.gpu_ranks import Scale, compare_engines, compare_shares, measure_step
from infra.ranks.devices import driver_version, use_ieee_fp32
from infra.storage.files import write_atomic
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import read_batch, sample_order
from sharding.simulation.datasets import write_cell
from ssl_core.loss.executor_choice import why_kernels_fail
from ssl_core.loss.ntxent import LossConfig, nt_xent
from ssl_core.views import PIXEL_TOLERANCE, ViewInputs, ViewTask, build_view_executor
from ssl_core.views.drawing import draw_views
from ssl_core.views.spec import VIEWS, ViewSpec

# All that need one; to look for them would import every test, which takes a minute and many packages.
GPU_TESTS: Final = (
    "tests/ssl_core/test_gpu.py",
    "tests/ssl_core/checkpoints/test_writer.py",
    "tests/ssl_core/engines/test_cuda_graphs.py",
    "tests/ssl_core/loss/test_kernels.py",
)
_SHORTER_SIDE_PX: Final = 320
_D: Final = 128
_TEMPERATURE: Final = 0.1
_MOST_IN_FLOAT64: Final = 65_536  # rows; for more, GPUs made for other work than float64 take many minutes
# nvJPEG and libjpeg-turbo round differently, by a level or two of gray.
_GPU_TOLERANCE: Final = {"mean": PIXEL_TOLERANCE["mean"] + 0.5, "max": PIXEL_TOLERANCE["max"] + 4}

Figures = dict[str, Any]


def check(holds: bool, what: str) -> None:
    """Raise AssertionError with `what` unless it holds, also under python -O."""
    if not holds:
        raise AssertionError(what)


def environment(scale: Scale) -> Figures:
    """Return versions, and check what the kernels of the loss need."""
    device = scale.devices[0]
    kernels = why_kernels_fail(device, _D, False, 0.5)
    compiler = next((name for name in ("gcc", "cc", "clang") if shutil.which(name)), None)
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if device.type == "cuda":
        check(kernels is None, f"the loss kernels do not run: {kernels}; C compiler {compiler}, Python.h {headers}")
        check(torch.distributed.is_nccl_available(), "torch has no NCCL")
    return {
        "driver": driver_version() or "none",
        "cuda": torch.version.cuda or "none",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if device.type == "cuda" else "not asked",  # type: ignore[no-untyped-call]
        "cudnn": torch.backends.cudnn.version() or 0,  # type: ignore[no-untyped-call]
        "c_compiler": compiler or "none",
        "python_h": headers,
        "loss_kernels": kernels or "run",
    }


def tests(scale: Scale) -> Figures:
    """Run the tests for GPUs; without one, those of the GPU branches on tensors without data."""
    selected = ["-m", "gpu", *GPU_TESTS] if scale.on_gpu else ["tests/ssl_core/model/test_gpu_branches.py"]
    command = [sys.executable, "-m", "pytest", "-v", *selected]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:  # at once, so that the log of a hang ends with the test that hangs
            sys.stdout.write(line)
            sys.stdout.flush()
            last = line.strip() or last
    check(process.returncode == 0, f"pytest ended with {process.returncode}")
    return {"pytest": last}


def views(scale: Scale) -> Figures:
    """Compare DALI's views with the CPU's; one image does not decode, and views are overwritten after their use."""
    device = scale.devices[0]
    with tempfile.TemporaryDirectory(prefix="sternum-views-") as folder:
        shards = ShardSet([make_shards(Path(folder), scale.images)])
        order = sample_order(shards, DataConfig([folder], global_batch=scale.local_batch, lanes=1), seed=0)
        spec = ViewSpec(size_px=scale.size_px)

        def inputs() -> Iterator[ViewInputs]:
            for step in range(scale.batches):
                batch = read_batch(shards, step, order.batch(step), mask=True)
                encoded = list(batch.encoded)
                if step == 1:
                    encoded[0] = _without_table(encoded[0])
                yield ViewInputs(encoded, batch.rows, draw_views(spec, 0, batch.rows, batch.epochs))

        task = ViewTask(spec.size_px, VIEWS, shards.pixel_mean, shards.pixel_std, scale.local_batch, device)
        on_cpu = build_view_executor(
            "torchvision", ViewTask(spec.size_px, VIEWS, task.mean, task.std, task.max_batch)
        ).run(islice(inputs(), 3))
        differences, failed, began_s = [], 0, 0.0
        for step, made in enumerate(build_view_executor("dali", task).run(inputs())):
            failed += int((~made.decoded).sum())
            if expected := next(on_cpu, None):
                for view, other in zip(made.views, expected.views, strict=True):
                    differences.append((view.cpu() - other).abs() * shards.pixel_std * 255)
            for view in made.views:
                view.fill_(float("nan"))  # DALI uses this memory again
            if step == 2:
                began_s = time.perf_counter()
        if scale.on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began_s
    mean, largest = (float(max(f(part) for part in differences)) for f in (torch.mean, torch.max))
    check(failed == 1, f"{failed} images did not decode, not 1")
    check(
        mean < _GPU_TOLERANCE["mean"] and largest < _GPU_TOLERANCE["max"], f"views differ by {mean}, {largest} levels"
    )
    rate = (scale.batches - 3) * scale.local_batch / seconds
    return {"mean_difference_levels": mean, "largest_difference_levels": largest, "images_per_s": rate}


def _without_table(image: Any) -> Any:
    """Return the JPEG without its quantization table: its header is good, no decoder can decode it."""
    start = image.tobytes().index(b"\xff\xdb")
    return np.concatenate([image[:start], image[start + 69 :]])


def make_shards(folder: Path, images: int) -> Path:
    """Pack simulated radiographs."""
    write_cell(folder / "cell", {"train": images}, seed=0, size_px=400)
    pack(PackConfig("cell", folder / "cell", folder / "shards", _SHORTER_SIDE_PX, workers=1))
    return folder / "shards"


def loss(scale: Scale) -> Figures:
    """Compare loss and gradient with more exact ones, and with those of a second call."""
    figures: Figures = {}
    device = scale.devices[0]
    for rows in scale.loss_rows:
        generator = torch.Generator().manual_seed(rows)
        first = torch.randn(rows // 2, _D, generator=generator).to(device)
        second = first + torch.randn(rows // 2, _D, generator=generator).to(device)
        found, again = (_loss_and_gradient(first, second, "auto") for _ in range(2))
        check(all(torch.equal(a, b) for a, b in zip(found, again, strict=True)), f"{rows} rows gave other bits again")
        began_s = time.perf_counter()
        _loss_and_gradient(first, second, "auto")
        figures[f"seconds_{rows}"] = time.perf_counter() - began_s
        dtype = torch.float64 if rows <= _MOST_IN_FLOAT64 else torch.float32
        exact = _loss_and_gradient(first.to(dtype), second.to(dtype), "tiled")
        errors = [float((a.double() - b.double()).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
        figures |= {f"loss_error_{rows}": errors[0], f"gradient_error_{rows}": errors[1]}
        check(errors[0] < 1e-4 and errors[1] < 2e-3, f"errors at {rows} rows: {errors}")
    return figures


def _loss_and_gradient(first: torch.Tensor, second: torch.Tensor, executor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    views = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    value = nt_xent(views[0], views[1], LossConfig(_TEMPERATURE, executor=executor)).loss
    gradient = torch.cat(torch.autograd.grad(value, views))
    if first.is_cuda:
        torch.cuda.synchronize()
    return value.detach(), gradient


def invariance(scale: Scale) -> Figures:
    """Compare gradients at every number of ranks with those of one."""
    figures = compare_shares(scale)
    for name, error in figures.items():
        check(error < (1e-3 if "fp32" in name else 1.5), f"{name}: the gradient differs by {error}")
    return figures


def engines(scale: Scale) -> Figures:
    """Make some steps by each engine."""
    losses = compare_engines(scale)
    for name, values in losses.items():
        check(bool(np.isfinite(values).all()), f"{name}: losses {values}")
        difference = abs(values[-1] - losses["ddp bf16"][-1]) / losses["ddp bf16"][-1]
        check(difference < 0.05, f"{name}: the loss {values[-1]} differs by {difference} from that of ddp")
    return {name: values[-1] for name, values in losses.items()}


def faults(scale: Scale) -> Figures:
    """Injure a run in several ways, and resume it after each."""
    with tempfile.TemporaryDirectory(prefix="sternum-faults-") as name:
        return measure_faults(scale, make_shards(Path(name), scale.images), Path(name))


def speed(scale: Scale) -> Figures:
    """Time a step beside the bare network's, count its waits, and run the other benchmarks."""
    figures: Figures = dict(measure_step(scale))
    if scale.on_gpu:
        runs = {
            "step": [
                "--engines=ddp",
                "--parts=1",
                "--small_local_batch=0",
                f"--ranks={scale.gpus}",
                f"--images={1024 * scale.gpus}",
            ],
            "loader": ["--size_px=224", "--cpus=16", "--repeats=1", "--ways=sternum, DALI"],
            "loss": ["--sections=speed", "--rows", "65536", "1048576", "--repeats=1"],
        }
        with tempfile.TemporaryDirectory() as folder:
            for name, options in runs.items():
                out = Path(folder, f"{name}.json")
                subprocess.run([sys.executable, "-m", f"benchmarks.{name}", f"--out={out}", *options], check=True)
                figures[name] = json.loads(out.read_text())
    return figures


STAGES: Final[dict[str, Callable[[Scale], Figures]]] = {
    stage.__name__: stage for stage in (environment, tests, views, loss, invariance, engines, faults, speed)
}


def main() -> None:
    """Run one stage and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("answer", type=Path)
    parser.add_argument("--reduced", action="store_true")
    options = parser.parse_args()
    use_ieee_fp32()
    write_atomic(options.answer, json.dumps(STAGES[options.stage](Scale.of_machine(options.reduced))))


if __name__ == "__main__":
    main()
