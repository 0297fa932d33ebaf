"""A run under torchrun that is injured: how long until all its processes are gone, and whether it resumes.

As a module this is the run: `torchrun ... -m benchmarks.gpu_faults RUN SHARDS FAULT`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from infra.monitoring.status import read_status
from infra.ranks.process_group import end_process
from infra.ranks.processes import ranks_from_environment
from launch.cli import run_command
from sharding.reading.data_config import DataConfig
from ssl_core.engines import Engine
from ssl_core.loss.agreement import GlobalBatch
from ssl_core.model.encoder import ModelConfig
from ssl_core.pretraining.config import PretrainConfig, TrainConfig
from ssl_core.pretraining.learning_step import Learned, learn
from ssl_core.pretraining.train import pretrain
from ssl_core.views.batches import Batch
from ssl_core.views.spec import ViewSpec

FAULTS: Final = ("raise", "memory", "kill", "terminate", "stop")
_STEPS: Final = 8
_STRIKE_AT: Final = 5
_TIMEOUT_S: Final = 40.0  # train.timeout_s, after which ranks give up a stopped one
_PASSED_ON_S: Final = 3.0  # after which torchrun has passed SIGTERM on, so that it does not come after the last step
_LIMITS_S: Final = {"raise": 45.0, "memory": 45.0, "kill": 75.0, "terminate": 45.0, "stop": 150.0}


def measure_faults(scale: Any, shards: Path, folder: Path) -> dict[str, Any]:
    """Injure a run in each way and resume it; return the seconds from the fault to the end of the last process."""
    figures: dict[str, Any] = {}
    ranks = max(1, scale.gpus) if scale.on_gpu else len(scale.devices)
    for fault in FAULTS:
        if fault == "stop" and ranks == 1:
            continue  # it takes another rank to notice
        run = folder / fault
        code = _launch(run, shards, fault, ranks, scale)
        ended_s = time.time()
        struck = run.with_suffix(".struck")
        if not struck.exists():
            raise AssertionError(f"{fault}: the run ended before the fault, with exit code {code}")
        seconds = ended_s - struck.stat().st_mtime
        status = read_status(run)
        state = status.state if status else "none"
        figures |= {f"{fault}_seconds": seconds, f"{fault}_state": state, f"{fault}_exit_code": code}
        if seconds > _LIMITS_S[fault]:
            raise AssertionError(f"{fault}: the last process ended after {seconds:.0f} s")
        expected = {"raise": "failed", "memory": "failed", "terminate": "preempted"}.get(fault)
        if expected not in (None, state):
            raise AssertionError(f"{fault}: status.json says {state}, not {expected}")
        if code == 0:  # torchrun's is 1 after a signal too
            raise AssertionError(f"{fault}: exit code 0")
        if _launch(run, shards, "none", ranks, scale) != 0:
            raise AssertionError(f"{fault}: the run does not resume")
        status = read_status(run)
        if status is None or status.step != _STEPS:
            raise AssertionError(f"{fault}: the resumed run ended as {status}")
    return figures


def _launch(run: Path, shards: Path, fault: str, ranks: int, scale: Any) -> int:
    """Run torchrun until all processes have ended; return its exit code."""
    settings = [str(run), str(shards), fault, str(scale.size_px), scale.backbone, str(min(64, scale.local_batch))]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    process = subprocess.Popen([*launcher, "-m", "benchmarks.gpu_faults", *settings])
    try:
        code = process.wait(_LIMITS_S["stop"] * 2)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        raise AssertionError(f"{fault}: the run did not end") from None
    return code


def _strike(fault: str, run: Path) -> None:
    run.with_suffix(".struck").touch()
    if fault == "raise":
        raise RuntimeError("a rank that raises")
    if fault == "memory":
        if torch.cuda.is_available():
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")
    target = os.getppid() if fault == "terminate" else os.getpid()  # torchrun passes SIGTERM on to all
    os.kill(target, {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}[fault])
    time.sleep(_PASSED_ON_S)


def _pretrain(words: list[str]) -> int:
    run, shards, fault, size_px, backbone, local_batch = words
    ranks = ranks_from_environment()
    config = PretrainConfig(
        run_folder=Path(run),
        data=DataConfig([shards], global_batch=int(local_batch) * ranks.world, lanes=ranks.world),
        views=ViewSpec(size_px=int(size_px)),
        model=ModelConfig(backbone),
        train=TrainConfig(
            epochs=10**4, max_steps=_STEPS, checkpoint_every_steps=2, log_every_steps=1, timeout_s=_TIMEOUT_S
        ),
    )

    def step(engine: Engine, batch: Batch, agreed: GlobalBatch, rate: float) -> Learned:
        if fault != "none" and batch.step == _STRIKE_AT and ranks.rank == ranks.world - 1:
            _strike(fault, Path(run))
        return learn(engine, batch, agreed, rate)

    pretrain(config, ranks, learning_step=step)
    return 0


if __name__ == "__main__":
    end_process(lambda: run_command(lambda words: _pretrain(list(words)), sys.argv[1:]))
