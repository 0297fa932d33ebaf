from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image

import infra.configuration.options
from sharding.datasets.files import ABSENT
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.packing.pack import PackConfig, pack
from sharding.simulation.datasets import write_cell


def samples_of(items: Iterable[Sample | Rejection]) -> list[Sample]:
    """Return the items, none of which may be a rejection, except that a part of the dataset is missing."""
    samples = []
    for item in items:
        if isinstance(item, Rejection) and item.reason == ABSENT:
            continue
        assert isinstance(item, Sample), item
        samples.append(item)
    return samples


class RadiographMaker(Protocol):
    """Makes a smooth gray image that no other seed gives."""

    def __call__(self, seed: int, height: int = 60, width: int = 72) -> Image.Image: ...


class CsvWriter(Protocol):
    """Writes a table of a header and rows, one string each."""

    def __call__(self, path: Path, header: str, *rows: str, encoding: str = "utf-8") -> None: ...


@pytest.fixture(autouse=True)
def no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have errors name options without the prefixes of a command that an earlier test ran."""
    monkeypatch.setattr(infra.configuration.options, "_prefixes", {})


@pytest.fixture(scope="session")
def radiograph() -> RadiographMaker:
    """Make a smooth gray image that no other seed gives."""

    def make(seed: int, height: int = 60, width: int = 72) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 7), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """52 simulated radiographs in the Cell layout, packed at 64 px into shards of at most 25 kB, as `set`."""
    root = tmp_path_factory.mktemp("small")
    write_cell(root / "raw", {"train": 40, "test": 12}, seed=0, size_px=64)
    pack(PackConfig("cell", root / "raw", root / "set", shorter_side_px=64, shard_size_mb=0.025, workers=1))
    return root / "set"


@pytest.fixture
def cell_root(tmp_path: Path, radiograph: RadiographMaker) -> Path:
    """A tree in the Cell layout: 60 images of 42 patients in three splits."""
    root = tmp_path / "cell"
    for split, first, count in (("train", 0, 20), ("val", 20, 4), ("test", 24, 6)):
        for class_name in ("NORMAL", "PNEUMONIA"):
            folder = root / split / class_name
            folder.mkdir(parents=True)
            for i in range(first, first + count):
                name = f"IM-{i:04d}-0001" if class_name == "NORMAL" else f"person{i // 3}_virus_{i}"
                radiograph(2 * i + len(class_name)).save(folder / f"{name}.jpeg", quality=95)
    return root


@pytest.fixture
def csv_file() -> CsvWriter:
    def write(path: Path, header: str, *rows: str, encoding: str = "utf-8") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows]) + "\n", encoding=encoding)

    return write
