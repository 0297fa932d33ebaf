from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.results.presets import PRESETS
from infra.configuration import config as configuration
from infra.monitoring.metrics import MetricsWriter
from infra.parallel.ray_session import ray_session
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import CheckpointState
from ssl_core.checkpoints.tensors import save_checkpoint
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.spec import ViewSpec
from tests.support.manifests import write_manifest


@contextmanager
def three_values_of_c() -> Iterator[None]:
    """Within the block, each preset has three values of C: most of a small probe's time goes into a longer grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "gazda2021", replace(PRESETS["gazda2021"], c_grid=(0.01, 0.1, 1.0)))
        patch.setitem(PRESETS, "rigorous", replace(PRESETS["rigorous"], c_grid=(0.001, 0.1, 10.0)))
        yield


@pytest.fixture(autouse=True, scope="module")
def short_grid() -> Iterator[None]:
    """Three values of C, also for the fixtures of a module; those of the session, which come first, have all."""
    with three_values_of_c():
        yield


@pytest.fixture(scope="session")
def ray() -> Iterator[None]:
    with ray_session(cores=2, address=None, shared_bytes=1 << 20):
        yield


def write_blobs(root: Path, training: int = 40) -> None:
    """The Cell layout with noise for images; pneumonia is a brighter patch, so that pixels alone reveal it."""
    random = np.random.default_rng(0)
    for split, count in (("train", training), ("val", 2), ("test", 16)):
        for name in ("NORMAL", "PNEUMONIA"):
            (root / split / name).mkdir(parents=True)
            first = {"train": 0, "val": 100, "test": 200}[split]
            for number in range(first, first + count):
                pixels = random.integers(60, 120, (40, 40))
                pixels[10:24, 8:22] += 60 * (name == "PNEUMONIA")
                stem = f"IM-{number:04d}-0001" if name == "NORMAL" else f"person{number}_bacteria_{number}"
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{stem}.jpeg")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cell")
    write_blobs(folder / "raw")
    pack(PackConfig("cell", folder / "raw", folder / "shards", shorter_side_px=40, workers=1))
    return folder / "shards"


@pytest.fixture(scope="session")
def simulated_cell(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same shards, marked as simulated."""
    folder = tmp_path_factory.mktemp("simulated-cell")
    for path in shards.iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / "manifest.json").unlink()
    manifest = read_manifest(shards)
    write_manifest(folder, replace(manifest, options=manifest.options | {"simulated": True}))
    return folder


def _make_run(
    run: Path,
    shards: Path,
    steps: tuple[int, ...] = (5, 10),
    splits: tuple[str, ...] = ("train",),
    ancestors: tuple[Ancestor, ...] = (),
) -> Path:
    """A run folder as pretraining leaves it: five steps an epoch, a checkpoint after each, no optimizer state."""
    data = DataConfig([str(shards)], list(splits), global_batch=16, lanes=4, shuffle_window=16)
    config = PretrainConfig(run, data, ViewSpec(size_px=32), ModelConfig("resnet18", 16, 8))
    configuration.save(config, run / "config.yaml")
    with MetricsWriter(run) as metrics:
        for step in range(1, (steps[-1] if steps else 0) + 1):
            metrics.write(step, {"epoch": step / 5, "loss": 3 - step / 10})
    identity = ShardSet([shards], splits).identity
    settings = {"views.size_px": config.views.size_px, "data.splits": [*splits]}
    for step in steps:
        state = CheckpointState(
            *(step, step / 5, "resnet18", identity, 0.5, 0.25, 1, "-", "-"),
            config=settings,
            shards=[str(shards)],
            ancestors=[*ancestors],
        )
        save_checkpoint(run, state, build_encoder(config.model, seed=step).state_dict(), {})
    return run


MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run() -> MakeRun:
    """Call it with the run folder and the shards pretrained on.

    `steps` of the checkpoints, `splits`, and the `ancestors` that they record may follow.
    """
    return _make_run


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Path:
    return _make_run(tmp_path / "run", shards)
