import csv
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from sharding.datasets.chexpert import COLUMNS
from sharding.format.manifest import read_index
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest
from tests.sharding.conftest import RadiographMaker

ROWS = 224_316
PATIENTS = 64_740
MOST_MB = 500

# The peak is the kernel's high-water mark; getrusage would count the process too that this one was forked from.
PACK = """
import sys
from pathlib import Path
from sharding.packing.pack import PackConfig, pack

if __name__ == "__main__":
    pack(PackConfig("chexpert", Path(sys.argv[1]), sys.argv[2], shorter_side_px=32, shard_size_mb=50))
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, radiograph: RadiographMaker) -> Iterator[Path]:
    """A table as long as CheXpert's; the images are hard links of 32 small ones."""
    root, originals = tmp_path_factory.mktemp("chexpert"), tmp_path_factory.mktemp("originals")
    sources = [originals / f"{seed}.jpg" for seed in range(32)]
    for seed, source in enumerate(sources):
        radiograph(seed, 32, 39).save(source)
    endless_sources = cycle(sources)
    left = ROWS
    with (root / "train.csv").open("w") as train, (root / "valid.csv").open("w") as valid:
        tables = {"train": csv.writer(train), "valid": csv.writer(valid)}
        for table in tables.values():
            table.writerow(COLUMNS)
        for patient in range(1, PATIENTS + 1):
            split = "valid" if patient > PATIENTS - 200 else "train"
            for study in range(1, 1 + -(-left // (PATIENTS + 1 - patient))):
                path = f"{split}/patient{patient:05d}/study{study}/view1_frontal.jpg"
                (root / path).parent.mkdir(parents=True)
                (root / path).hardlink_to(next(endless_sources))
                labels = ["1.0" if patient % 7 == i else "" for i in range(14)]
                tables[split].writerow([f"CheXpert-v1.0/{path}", "Female", 60, "Frontal", "AP", *labels])
                left -= 1
    yield root
    shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory's high-water mark from /proc")
def test_table_of_224316_rows_packs_in_bounded_memory_and_its_fractions_share_no_patient(
    root: Path, tmp_path: Path
) -> None:
    script = tmp_path / "pack_chexpert.py"  # a file, since the workers import the main module again
    script.write_text(PACK)
    out = tmp_path / "shards"
    done = subprocess.run([sys.executable, script, root, out], check=True, capture_output=True, text=True)
    peak_mb = int(done.stdout) / 1e3
    print(f"peak memory of the main process: {peak_mb:.0f} MB; {done.stderr.splitlines()[-1]}")  # noqa: T201
    assert peak_mb < MOST_MB
    manifest = read_manifest(out)
    assert (manifest.samples, manifest.patients, manifest.rejected) == (ROWS, PATIENTS, [])
    patients = {
        tier: np.unique(
            np.concatenate(
                [read_index(out, shard)["patient"] for shard in manifest.shards if shard.tier_percent == tier]
            )
        )
        for tier in (1, 10, 100)
    }
    assert [len(patients[tier]) for tier in (1, 10)] == [648, 6474 - 648]
    assert sum(map(len, patients.values())) == len(np.unique(np.concatenate(list(patients.values())))) == PATIENTS
    assert verify(out) == []
