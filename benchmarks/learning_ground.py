"""The ground of `benchmarks.learning`: real radiographs, packed by Sternum, and the packed pixels as arrays.

Every recipe, every peer and the probe see the same pixels: Sternum reads them from the shards, the others from arrays
that were decoded from these shards. Cell's test part has an array of its own, which only the last judgment opens.
"""

import io
import json
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from infra.arrays import Int64, UInt8
from infra.errors import UserError, require
from infra.log import say
from infra.storage.files import atomic_file, write_atomic
from sharding.format.sample import SampleMetadata
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_samples

SIDE_PX: Final = 224  # of Cell's files, and so the largest that both sets have
SMALL_SIDE_PX: Final = 128  # shards as README proposes for two cores
PARTS: Final = ("cell", "cell-test", "chestxray14")
HEALTHY: Final = {"cell": "NORMAL", "chestxray14": "No Finding"}
ILL: Final = {"cell": "PNEUMONIA", "chestxray14": "Pneumonia"}
_PATHOGEN: Final = re.compile(r"_(?:bacteria|virus)$")


@dataclass(frozen=True)
class Films:
    """The radiographs of one part.

    Attributes:
        pixels: (N, side, side) gray levels, mapped from the file
        classes: (N,) 1 pneumonia, 0 healthy, -1 neither
        patients: (N,) codes; Cell's person12_bacteria and person12_virus are one patient here, the stricter reading
        views: (N,) 1 PA, 0 AP, -1 unknown
    """

    pixels: UInt8
    classes: Int64
    patients: Int64
    views: Int64


def shard_folders(ground: Path, side_px: int) -> list[Path]:
    """Return the folders of both sets' shards."""
    return [ground / f"shards-{side_px}" / name for name in ("cell", "chestxray14")]


def prepare(ground: Path, cell: Path, chestxray14: Path) -> None:
    """Pack both sets and write their arrays; what is there already stays.

    Args:
        ground: folder for everything, outside of the project
        cell: the dataset of Kermany et al. as published
        chestxray14: ChestX-ray14 as published, or a part of it

    Raises:
        UserError: if a dataset cannot be packed
    """
    roots = {"cell": cell, "chestxray14": chestxray14}
    for side_px in (SIDE_PX, SMALL_SIDE_PX):
        for folder in shard_folders(ground, side_px):
            say(f"packing {folder.name} at {side_px} px")
            pack(PackConfig(folder.name, roots[folder.name], folder, side_px))
    for name in PARTS:
        if not (ground / f"{name}.json").exists():
            _write_part(ground, name)


def open_films(ground: Path, name: str) -> Films:
    """Return a part: cell (its development part), cell-test or chestxray14."""
    require(
        (ground / f"{name}.json").exists(),
        f"ground={ground} has no {name}.json; make it with the command prepare",
    )
    facts = json.loads((ground / f"{name}.json").read_text(encoding="utf-8"))
    pixels = np.load(ground / f"{name}.npy", mmap_mode="r")
    return Films(pixels, *(np.array(facts[key], np.int64) for key in ("classes", "patients", "views")))


def all_pixels(ground: Path) -> list[UInt8]:
    """Return the arrays of all images that pretraining may see: both sets without Cell's test part."""
    return [open_films(ground, name).pixels for name in PARTS if name != "cell-test"]


def _write_part(ground: Path, name: str) -> None:
    dataset = name.removesuffix("-test")
    splits = {"cell": ["train", "val"], "cell-test": ["test"], "chestxray14": []}[name]
    shards = ShardSet([str(ground / f"shards-{SIDE_PX}" / dataset)], splits)
    images, records = list[UInt8](), list[SampleMetadata]()
    with closing(packed_samples(shards)) as samples:
        for shard, row in samples:
            with Image.open(io.BytesIO(shard.read(row).tobytes())) as image:
                images.append(np.asarray(image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)))
            records.append(shard.metadata(row))
    patients = [_PATHOGEN.sub("", str(record["patient"])) for record in records]
    facts: dict[str, Any] = {
        "identity": shards.identity,
        "classes": [_class_of(record, dataset) for record in records],
        "patients": np.unique(patients, return_inverse=True)[1].tolist(),
        "views": [{"frontal-pa": 1, "frontal-ap": 0}.get(str(record["view"]), -1) for record in records],
    }
    with atomic_file(ground / f"{name}.npy") as file:
        np.save(file, np.stack(images))
    write_atomic(ground / f"{name}.json", json.dumps(facts) + "\n")
    say(f"{name}: {len(images)} images of {len(set(patients))} patients")


def _class_of(record: SampleMetadata, dataset: str) -> int:
    labels = record["labels"]
    if labels.get(ILL[dataset]) == 1:
        return 1
    return 0 if labels.get(HEALTHY[dataset]) == 1 else -1


def data_identity(ground: Path) -> str:
    """Return what names the pixels of all parts that `score` reads."""
    files = [ground / f"{name}.json" for name in PARTS if name != "cell-test"]
    missing = [str(path) for path in files if not path.exists()]
    if missing:
        raise UserError(f"ground={ground} lacks {', '.join(missing)}; make it with the command prepare")
    return "-".join(json.loads(path.read_text(encoding="utf-8"))["identity"][:12] for path in files)
