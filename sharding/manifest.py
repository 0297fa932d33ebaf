"""`manifest.json`: what a folder of shards holds, and the index by which samples are read without scanning tars."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from infra.errors import UserError
from infra.files import write_atomic

NAME: Final = "manifest.json"
PARTIAL: Final = ".partial"  # the folder of notes beside the shards while packing has not ended
VERSION: Final = 1

# One row a sample, in the order of the shard, stored beside it as NAME.index.npy. The identities are 64-bit hashes
# (infra.rng.stable_hash of "DATASET/KEY", "DATASET/PATIENT", "DATASET/PATIENT/STUDY"), so that what is drawn for a
# sample outlives repacking. Offsets and sizes are those of the members' content inside the tar.
INDEX_ROW: Final = np.dtype(
    [
        ("sample", "<u8"),
        ("patient", "<u8"),
        ("study", "<u8"),
        ("image_offset", "<u8"),
        ("image_bytes", "<u4"),
        ("image_crc32", "<u4"),
        ("meta_offset", "<u8"),
        ("meta_bytes", "<u4"),
        ("meta_crc32", "<u4"),
        ("height", "<u2"),
        ("width", "<u2"),
    ]
)


@dataclass(frozen=True)
class Shard:
    """One tar: samples of one official split and one fraction tier, so that both are chosen by choosing shards.

    tier_percent: 1, 10 or 100, the smallest fraction of the patients that this shard belongs to; the fraction f
    is all shards with tier_percent <= f.
    """

    name: str
    samples: int
    size_bytes: int
    sha256: str
    index_sha256: str
    tier_percent: int
    split: str | None = None

    @property
    def index_name(self) -> str:
        """The file beside the tar that holds its INDEX_ROW rows."""
        return f"{self.name.removesuffix('.tar')}.index.npy"


@dataclass(frozen=True)
class Rejection:
    """A file or row of the dataset that was not packed, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. Pixel statistics are over all packed pixels, on the scale 0 to 1.

    source_bytes: size of the image files that were packed.
    """

    version: int
    dataset: str
    made_by: str
    options: dict[str, int | float | str | bool | None]
    samples: int
    patients: int
    pixel_mean: float
    pixel_std: float
    shards: list[Shard]
    rejected: list[Rejection]
    source_bytes: int = 0

    def select(self, splits: Sequence[str] | None = None, fraction_percent: int = 100) -> list[Shard]:
        """Return the shards of these official splits (None: all) and of this nested fraction of the patients.

        Raises UserError when a split is not in the dataset or nothing is left.
        """
        present = sorted({shard.split for shard in self.shards if shard.split is not None})
        for split in splits or ():
            if split not in present:
                raise UserError(f"split {split!r} is not in dataset {self.dataset!r}; it has {present or 'none'}")
        chosen = [
            shard
            for shard in self.shards
            if (not splits or shard.split in splits) and shard.tier_percent <= fraction_percent
        ]
        if not chosen:
            raise UserError(f"{fraction_percent} % of dataset {self.dataset!r} holds no sample; take a larger fraction")
        return chosen

    @cached_property
    def identity(self) -> str:
        """A hash over the shards' hashes: equal exactly when the packed bytes are."""
        return sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json` atomically."""
    write_atomic(folder / NAME, encode_manifest(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of `manifest.json`."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json`; raises UserError when there is none or it is not one."""
    path = folder / NAME
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        if (folder / PARTIAL).exists():
            raise UserError(f"packing into {folder} has not ended; give the same command again to finish it") from error
        raise UserError(f"{folder} holds no {NAME}; pack a dataset into it first: sternum shard --help") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}; pack the dataset again") from error
    return decode_manifest(content, str(path))


def decode_manifest(content: bytes, path: str) -> Manifest:
    """Return the manifest in `content`; raises UserError, naming `path`, when there is none or another version's."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as error:
        raise UserError(f"{path} cannot be read: {error}; pack the dataset again") from error
    if manifest.version != VERSION:
        raise UserError(f"{path} has version {manifest.version}, this Sternum reads {VERSION}; pack the dataset again")
    return manifest


def read_index(folder: Path, shard: Shard) -> npt.NDArray[np.void]:
    """Return the INDEX_ROW rows of a shard (samples,); raises UserError unless they are the manifest's."""
    path = folder / shard.index_name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; pack the dataset again") from error
    if sha256(content).hexdigest() != shard.index_sha256:
        raise UserError(f"{path} is not the file that {NAME} describes; pack the dataset again")
    with path.open("rb") as file:
        rows: npt.NDArray[np.void] = np.lib.format.read_array(file, allow_pickle=False)
    return rows
