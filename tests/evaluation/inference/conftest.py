from pathlib import Path

import pytest

from evaluation.data.labeled_sets import ProbeData
from evaluation.probe import probe
from evaluation.probe_config import ProbeConfig
from tests.evaluation.conftest import MakeRun


@pytest.fixture(scope="session")
def probed(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> Path:
    """A run that keeps the probes of its last checkpoint, with the official test part and cross-validated."""
    run = make_run(tmp_path_factory.mktemp("probed") / "run", shards, steps=(5,))
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
    )
    probe(config, "sternum probe run")
    return run


@pytest.fixture(scope="session")
def raw(shards: Path) -> Path:
    """The image files from which the shards were packed."""
    return shards.parent / "raw"
