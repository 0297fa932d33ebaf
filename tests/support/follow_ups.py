"""A packed set of patients with several studies and images each, some of them in two official splits."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from sharding.datasets.folder import FolderOptions
from sharding.packing.pack import PackConfig, pack


def write_follow_ups(root: Path, patients: int = 40, size_px: int = 32) -> Path:
    """Write images and their table; return the table's folder.

    Patient n has 1 + n % 3 studies of 1 + n % 2 images, so that a sixth of the patients has one image only. Studies are
    30 days apart, and every seventh patient's days are unknown. The studies of every fifth patient are in train and
    test in turn; all other images are in train.
    """
    root.mkdir(parents=True)
    draws = np.random.default_rng(0)
    rows = [
        {
            "patient": f"p{n}",
            "study": f"s{study}",
            "split": "test" if n % 5 == 0 and study % 2 else "train",
            "day": str(30 * study - n) if n % 7 else "",
        }
        for n in range(patients)
        for study in range(1 + n % 3)
        for _ in range(1 + n % 2)
    ]
    for number, row in enumerate(rows):
        row["path"] = f"{number}.png"
        size = (size_px + number % 7, size_px + number % 5)
        Image.fromarray(draws.integers(0, 256, size, np.uint8)).save(root / row["path"])
    with (root / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def pack_follow_ups(root: Path, out: Path, *, size_px: int = 32, shard_size_mb: float = 0.02, seed: int = 0) -> Path:
    """Pack what `write_follow_ups` wrote; return the packed folder."""
    table = FolderOptions(csv=Path("table.csv"), patient="patient", study="study", day="day", split="split")
    pack(
        PackConfig(
            "folder",
            root,
            out,
            shorter_side_px=size_px,
            shard_size_mb=shard_size_mb,
            workers=1,
            seed=seed,
            name="follow-ups",
            folder=table,
        )
    )
    return out
