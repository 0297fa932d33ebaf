import shutil
from pathlib import Path

import pytest

from evaluation.data.backbones.opened import InputOptions
from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from ssl_core.checkpoints.checkpoint import MODEL, find_checkpoints
from tests.evaluation.conftest import MakeRun, three_values_of_c


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> Path:
    """A run that keeps probes of its last checkpoint and of other weights: with the test part, and cross-validated."""
    run = make_run(tmp_path_factory.mktemp("probed") / "run", shards, steps=(5,))
    other = make_run(run.parent / "other", shards, steps=(7,))
    weights = run.parent / "weights.safetensors"
    shutil.copy(find_checkpoints(other)[0].path / MODEL, weights)
    config = ProbeConfig(
        run,
        ProbeData([str(shards)]),
        presets=["rigorous"],
        controls=False,
        few_labels=False,
        search="serial",
        executor="torchvision",
        folds=3,
        split="ignore",
        allow_overlap=True,
        bootstrap_resamples=0,
        pictures=False,
        compare=[f"checkpoint={other}", f"file={weights}@resnet18"],
        input=InputOptions(32, [0.5], [0.25]),
    )
    with three_values_of_c():
        probe(config, "sternum probe run")
    return run


@pytest.fixture(scope="session")
def raw(shards: Path) -> Path:
    """The image files from which the shards were packed."""
    return shards.parent / "raw"
