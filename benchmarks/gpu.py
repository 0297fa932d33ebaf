"""Whether Sternum works on this machine's GPUs, and how fast: `make gpu`.

environment  versions of driver and libraries, a C compiler, and the loss kernels on four rows
tests        the tests marked `gpu`
views        DALI's views beside the CPU's, an image that does not decode, and memory that is overwritten after its use
loss         loss and gradient beside a more exact computation, and the same bits twice
invariance   gradients at every number of ranks beside those of one, also with a rank without samples
engines      some steps by each engine, compiled, and in fp16
faults       a run in which a rank raises, runs out of memory, is killed or stops: seconds until all processes are gone
speed        a step beside the bare network's, waits for the GPU in a step, loader, loop and loss

Each stage has its own process and time limit, so a hang is a result too. With --reduced all stages run on the CPU in
minutes: that proves this command, and nothing about GPUs. The exit code is 1 if a stage fails.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from benchmarks.common import machine, table
from infra.ranks.devices import driver_version
from infra.storage.files import write_atomic

LIMITS_S: Final = {
    "environment": 180,
    "tests": 900,
    "views": 180,
    "loss": 240,
    "invariance": 420,
    "engines": 900,
    "faults": 900,
    "speed": 900,
}
_LAST_LINES: Final = 40


@dataclass(frozen=True)
class Stage:
    """What became of a stage. last_lines: of its output, which tell why it failed."""

    name: str
    ok: bool
    seconds: float
    limit_s: float
    figures: dict[str, Any]
    last_lines: list[str]


def run_stage(name: str, reduced: bool, limit_s: float) -> Stage:
    """Run a stage in a process of its own, and kill it with its descendants at the limit."""
    with tempfile.TemporaryDirectory(prefix="sternum-gpu-") as folder:
        answer, log = Path(folder, "figures.json"), Path(folder, "log")
        command = [sys.executable, "-m", "benchmarks.gpu_stages", name, str(answer), *["--reduced"] * reduced]
        began_s = time.perf_counter()
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True, env=_environment(reduced)
            )
            try:
                code: int | None = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
            _kill_with_descendants(process)
        seconds = time.perf_counter() - began_s
        lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        if code is None:
            lines.append(f"the stage did not end within {limit_s:.0f} s")
        figures = json.loads(answer.read_text()) if code == 0 else {}
    return Stage(name, code == 0, round(seconds, 1), limit_s, figures, [] if code == 0 else lines)


def _environment(reduced: bool) -> dict[str, str]:
    return dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if reduced else {})


def _kill_with_descendants(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a stage: its session, and what descends from it in others."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        for descendant in descendants:
            try:
                descendant.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()


def text(stages: Sequence[Stage]) -> str:
    """Return the stages as a table, and the figures that are numbers."""
    rows = [
        [stage.name, "passed" if stage.ok else "FAILED", f"{stage.seconds:.0f}", f"{stage.limit_s:.0f}"]
        for stage in stages
    ]
    figures = [
        [f"{stage.name}: {name}", f"{value:.4g}" if isinstance(value, float) else str(value)]
        for stage in stages
        for name, value in stage.figures.items()
        if isinstance(value, int | float | str)
    ]
    return "\n\n".join([table(["stage", "", "s", "limit s"], rows), table(["figure", ""], figures)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages one after the other, and print and write what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--stages", nargs="+", choices=LIMITS_S, default=list(LIMITS_S))
    parser.add_argument("--reduced", action="store_true", help="on the CPU, to test this command itself")
    parser.add_argument("--limit_factor", type=float, default=1.0, help="multiplies the time limits")
    options = parser.parse_args(arguments)
    if not options.reduced and not torch.cuda.is_available():
        print("there is no GPU that torch can use; --reduced tests this command on the CPU", file=sys.stderr)
        return 2
    stages = []
    for name in options.stages:
        stage = run_stage(name, options.reduced, LIMITS_S[name] * options.limit_factor)
        stages.append(stage)
        print(f"{name}: {'passed' if stage.ok else 'FAILED'} in {stage.seconds:.0f} s", flush=True)
        for line in stage.last_lines:
            print(f"    {line}", flush=True)
    gpus = [] if options.reduced else [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    content = {
        "reduced": options.reduced,
        "gpus": gpus,
        "driver": driver_version(),
        "stages": [asdict(stage) for stage in stages],
        "machine": machine("torch", "torchvision", "triton", "nvidia-dali-cuda130", "deepspeed", "nvidia-nccl-cu13"),
    }
    write_atomic(options.out, json.dumps(content, indent=1) + "\n")
    print(text(stages))
    return 0 if all(stage.ok for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main())
