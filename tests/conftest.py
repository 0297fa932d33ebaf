"""Fixtures of several test folders: a small packed set of simulated radiographs, a free port, and two machines."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings

from sharding.packing.pack import PackConfig, pack
from sharding.simulation.datasets import write_chexpert

if TYPE_CHECKING:
    from tests.support.network_namespaces import Network

settings.register_profile("sternum", deadline=None)  # tests share the cores, so how long one takes says nothing
settings.load_profile("sternum")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from tests that do not ask for one: most compare bits, or with processes that have none."""
    if config.option.markexpr != "gpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="session")
def simulated_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 80 simulated CheXpert radiographs, packed at 64 px."""
    folder = tmp_path_factory.mktemp("simulated")
    write_chexpert(folder / "raw", patients=40, seed=0, size_px=64)
    pack(PackConfig("chexpert", folder / "raw", folder / "shards", shorter_side_px=64, workers=1))
    return folder / "shards"


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def closed_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests import Ray in this process, where later ones may start a local Ray; it reads this at its import."""
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@pytest.fixture
def network() -> "Iterator[Network]":
    """Two machines on a network, as namespaces of this one."""
    from tests.support.network_namespaces import NoNetwork, machine_network  # noqa: PLC0415 (imports the training)

    try:
        with machine_network() as machines:
            yield machines
    except NoNetwork as error:
        pytest.skip(str(error))
