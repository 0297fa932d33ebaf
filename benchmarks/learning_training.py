"""One training of `benchmarks.learning` in a process of its own: Sternum's real `pretrain`, or the loop of a peer."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import torch

from benchmarks.common import machine
from benchmarks.learning_features import Weights, load_weights, save_weights
from benchmarks.learning_ground import SIDE_PX, SMALL_SIDE_PX, all_pixels, data_identity, shard_folders
from benchmarks.learning_recipes import COMMON, PEERS, STERNUM, UNTRAINED, require_recipe, side_px_of
from infra.errors import RunFailed, require
from infra.monitoring.metrics import read_metrics
from infra.ranks.devices import has_bf16_matrix_units
from infra.storage.files import write_atomic
from infra.storage.locks import locked
from ssl_core.checkpoints.newest import newest_whole_checkpoint
from ssl_core.checkpoints.tensors import load_backbone

ROOT: Final = Path(__file__).parents[1]
_TRIAL_STEPS: Final = 60


@dataclass(frozen=True)
class Training:
    """What to train: a recipe with a seed, the size of its views and its length.

    Attributes:
        recipe: name of a recipe
        seed: of weights, order and views
        size_px: width and height of a view
        epochs: passes over all images
    """

    recipe: str
    seed: int
    size_px: int
    epochs: int

    def __post_init__(self) -> None:
        require_recipe(self.recipe)
        require(self.epochs >= 1, f"epochs={self.epochs} of {self.recipe} must be at least 1; try 10")

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.recipe not in UNTRAINED

    @property
    def without_seed(self) -> str:
        """Recipe, size and length; controls have only a name."""
        return f"{self.recipe}-{self.size_px}px-{self.epochs}epochs" if self.is_trained else self.recipe

    @property
    def name(self) -> str:
        """Name of the run's files."""
        return f"{self.without_seed}-seed{self.seed}"


@dataclass(frozen=True)
class Trained:
    """How a training went.

    Attributes:
        options: words of the command, where GROUND is the folder of the ground
        samples: images shown, each with all of its views
        wall_s: seconds from start to end of the process, saving included
        cpu_ms_per_image: CPU time of all threads and processes per sample
        loss_by_epoch: mean of each epoch
        began: UTC
        commit: of the code
        ground: identity of the images
        machine: processor, versions, and whether it computes in bf16 or fp32
    """

    options: list[str] = field(default_factory=list)
    samples: int = 0
    wall_s: float = 0.0
    cpu_ms_per_image: float = 0.0
    loss_by_epoch: list[float] = field(default_factory=list)
    began: str = ""
    commit: str = ""
    ground: str = ""
    machine: dict[str, Any] = field(default_factory=dict)


class _Outcome(NamedTuple):
    weights: Weights
    samples: int
    loss_by_epoch: list[float]


def weights_path(ground: Path, training: Training) -> Path:
    """Return where the weights of a training are."""
    return ground / "weights" / f"{training.name}.safetensors"


def read_trained(ground: Path, training: Training) -> Trained:
    """Return how a training went; of a control, which is not trained, only this code and machine.

    Raises:
        UserError: if it was not trained
    """
    if not training.is_trained:
        return Trained(commit=commit(), ground=data_identity(ground), machine=_machine())
    path = weights_path(ground, training).with_suffix(".json")
    require(path.exists(), f"{training.name} is not trained: {path} is missing; use the command train, or queue")
    return Trained(**json.loads(path.read_text(encoding="utf-8")))


def train(ground: Path, training: Training, threads: int) -> None:
    """Train from the beginning; write the weights, and how it went beside them. Nothing else of the run remains.

    Args:
        ground: folder that `prepare` made
        training: what to train
        threads: of the training process; a peer has a process for its views beside them

    Raises:
        RunFailed: if the process fails
        UserError: if another process trains the same
    """
    of_code, began = commit(), datetime.now(UTC)
    with _run_folder(ground, training.name) as run:
        command = _command(ground, training, run)
        began_s, began_cpu_s = time.monotonic(), _children_cpu_s()
        _run(command, threads)
        wall_s, cpu_s = time.monotonic() - began_s, _children_cpu_s() - began_cpu_s
        outcome = _peer_outcome(run) if training.recipe in PEERS else _sternum_outcome(run, training.epochs)
        save_weights(weights_path(ground, training), outcome.weights)
        trained = Trained(
            [word.replace(str(ground), "GROUND") for word in command[2:]],
            outcome.samples,
            round(wall_s, 1),
            round(1000 * cpu_s / outcome.samples, 3),
            [round(value, 5) for value in outcome.loss_by_epoch],
            began.isoformat(timespec="seconds"),
            of_code,
            data_identity(ground),
            _machine(),
        )
        write_atomic(weights_path(ground, training).with_suffix(".json"), json.dumps(asdict(trained), indent=1) + "\n")


def epochs_in(ground: Path, training: Training, minutes: float, threads: int) -> int:
    """Return how many epochs fit into minutes, by the rate of a short trial; at least one."""
    steps = "max_steps" if training.recipe in PEERS else "train.max_steps"
    with _run_folder(ground, "trial") as run:
        _run([*_command(ground, replace(training, epochs=100), run), f"--{steps}={_TRIAL_STEPS}"], threads)
        rate = _facts(run)["images_per_s"] if training.recipe in PEERS else _sternum_rate(run)
    return max(1, round(60 * minutes * rate / sum(map(len, all_pixels(ground)))))


def commit() -> str:
    """Return the commit of this code, with a + if files differ from it."""
    named = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return named.stdout.strip() or "unknown"


def _command(ground: Path, training: Training, run: Path) -> list[str]:
    length = (f"--seed={training.seed}", f"--{'' if training.recipe in PEERS else 'train.'}epochs={training.epochs}")
    if training.recipe in PEERS:
        words = [training.recipe, f"--ground={ground}", f"--out={run}", f"--size_px={training.size_px}", *length]
        return [sys.executable, "-m", "benchmarks.learning_peers", *words]
    shards = ",".join(map(str, shard_folders(ground, side_px_of(training.recipe, SIDE_PX, SMALL_SIDE_PX))))
    words = [
        str(run),
        *COMMON,
        f"--data.shards=[{shards}]",
        f"--views.size_px={training.size_px}",
        *length,
        *("--train.checkpoint_every_epochs=1000000", "--checkpoints.keep_last=1"),
        *STERNUM[training.recipe],
    ]
    return [sys.executable, "-m", "launch.pretrain", *words]


def _machine() -> dict[str, Any]:
    found = machine("torch", "torchvision", "scikit-learn", "lightly", "nvidia-dali-cuda130")
    return found | {"precision": "bf16" if has_bf16_matrix_units(torch.device("cpu")) else "fp32"}


@contextmanager
def _run_folder(ground: Path, name: str) -> Iterator[Path]:
    """Yield the path of a new run that no other process uses, and remove the run if the block ends without an error."""
    folder = ground / "runs" / name
    with locked(folder, "training"):
        shutil.rmtree(folder / "run", ignore_errors=True)
        yield folder / "run"
        shutil.rmtree(folder)


def _run(command: list[str], threads: int) -> None:
    ended = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=False)
    if ended.returncode != 0:
        raise RunFailed(f"{' '.join(command[1:4])} ended with exit code {ended.returncode}; its message is above")


def _children_cpu_s() -> float:
    """Return the CPU time of all processes that this one has started, and their own, once they have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "facts.json").read_text(encoding="utf-8"))
    return facts


def _peer_outcome(run: Path) -> _Outcome:
    facts = _facts(run)
    return _Outcome(load_weights(run / "weights.safetensors"), facts["samples"], facts["loss_by_epoch"])


def _sternum_outcome(run: Path, epochs: int) -> _Outcome:
    checkpoint = newest_whole_checkpoint(run)
    assert checkpoint is not None, f"{run} has ended without a checkpoint"
    state = checkpoint.state
    by_epoch = defaultdict[int, list[float]](list)
    for line in read_metrics(run):
        by_epoch[min(int(line["epoch"]), epochs - 1)].append(line["loss"])  # the last step may begin another epoch
    return _Outcome(
        Weights(load_backbone(checkpoint).network.module.state_dict(), state.pixel_mean, state.pixel_std),
        state.step * int(state.config["data.global_batch"]),
        [sum(losses) / len(losses) for _, losses in sorted(by_epoch.items())],
    )


def _sternum_rate(run: Path) -> float:
    return median(line["speed/images_per_s"] for line in read_metrics(run)[1:])
