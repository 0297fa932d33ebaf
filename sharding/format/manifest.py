"""The content of `manifest.json`, and the index that locates samples without scanning tars."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Final

import numpy as np

from infra.arrays import Records
from infra.errors import UserError
from infra.storage.files import read_small
from infra.storage.json_files import BadJson, decode_json, encode_json
from sharding.format.fractions import FRACTIONS_PERCENT
from sharding.format.label_counts import LabelCounts
from sharding.images.fingerprint import FINGERPRINT
from sharding.images.limits import MAX_PIXELS, MAX_SIDE_PX

MANIFEST_NAME: Final = "manifest.json"
PARTIAL: Final = ".partial"  # the folder of notes next to the shards of an unfinished packing
VERSION: Final = 1

SET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
SET_NAME_RULE: Final = "1 to 40 letters, digits, dots, underscores and hyphens, and begin with a letter or digit"
_SHARD_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.tar")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_LEAST_SAMPLE_BYTES: Final = 4 * BLOCKSIZE  # two members of at least one block, each with its header
_MOST_BYTES: Final = 1 << 50
_LEAST_PIXEL_STD: Final = 1e-4  # a fortieth of one of the 255 gray levels; training divides by it

Options = dict[str, int | float | str | bool | list[str] | None]

# One row per sample, in the order of the shard, stored as NAME.index.npy. The identities are 64-bit hashes
# (infra.rng.stable_hash of "SET/KEY", "SET/PATIENT", "SET/PATIENT/STUDY" with the set's name), so that random draws for
# a sample do not change when it is packed again. Offsets and sizes are those of the members' content in the tar.
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
    """One tar with samples of one official split and one fraction tier, so that choosing shards chooses both.

    Attributes:
        name: file name of the tar
        samples: the number of its samples
        size_bytes: size of the tar
        sha256: SHA-256 of the tar
        index_sha256: SHA-256 of its index
        tier_percent: 1, 10 or 100, the smallest fraction of the patients that this shard belongs to; the fraction f
            is all shards with tier_percent <= f
        split: the official split of its samples, None if the dataset has none
        fingerprints_sha256: SHA-256 of its fingerprints, None if an older version packed it without them
    """

    name: str
    samples: int
    size_bytes: int
    sha256: str
    index_sha256: str
    tier_percent: int
    split: str | None = None
    fingerprints_sha256: str | None = None

    @property
    def index_name(self) -> str:
        """The name of the file with its INDEX_ROW rows."""
        return f"{self.name.removesuffix('.tar')}.index.npy"

    @property
    def fingerprints_name(self) -> str:
        """The name of the file with its FINGERPRINT rows."""
        return f"{self.name.removesuffix('.tar')}.fingerprints.npy"

    @property
    def companions(self) -> dict[str, str]:
        """The files beside the tar: the SHA-256 of each by its name."""
        files = {self.index_name: self.index_sha256, self.fingerprints_name: self.fingerprints_sha256}
        return {name: sha256 for name, sha256 in files.items() if sha256 is not None}


@dataclass(frozen=True)
class Rejection:
    """A file or row of the dataset that was not packed, with the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        version: version of the format
        dataset: the dataset's name, which is that of its reader
        made_by: the versions of the programs that the packed bytes depend on
        options: the options that the packed bytes depend on
        samples: the number of samples in all shards
        patients: the number of patients in all shards
        pixel_mean: mean over all packed pixels, scale 0 to 1
        pixel_std: standard deviation over all packed pixels, scale 0 to 1
        shards: in packed order
        rejected: the files and rows that were not packed
        source_bytes: size of the image files that were packed
        name: the set's name, of which identities and shard names are made; that of the dataset by default, and in
            manifests of older versions, which lack it
        labels: how often each label has each value; None in manifests of older versions, which lack it
    """

    version: int
    dataset: str
    made_by: str
    options: Options
    samples: int
    patients: int
    pixel_mean: float
    pixel_std: float
    shards: list[Shard]
    rejected: list[Rejection]
    source_bytes: int = 0
    name: str = ""
    labels: dict[str, LabelCounts] | None = None

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.dataset)

    def select(self, splits: Sequence[str] | None = None, fraction_percent: int = 100) -> list[Shard]:
        """Return the shards of these official splits (None: all) and this nested fraction of the patients.

        Raises:
            UserError: if a split is not in the dataset, or no shard is left
        """
        present = sorted({shard.split for shard in self.shards if shard.split is not None})
        for split in splits or ():
            if split not in present:
                raise UserError(f"split {split!r} is not in dataset {self.name!r}; it has {present or 'none'}")
        chosen = [
            shard
            for shard in self.shards
            if (not splits or shard.split in splits) and shard.tier_percent <= fraction_percent
        ]
        if not chosen:
            raise UserError(f"{fraction_percent} % of dataset {self.name!r} holds no sample; take a larger fraction")
        return chosen

    @cached_property
    def identity(self) -> str:
        """A hash over the shards' hashes: equal exactly when the packed bytes are."""
        return sha256("".join(shard.sha256 for shard in self.shards).encode()).hexdigest()


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the content of `manifest.json`."""
    return encode_json(manifest)


class NotJson(UserError):
    """A manifest that is not JSON."""


def decode_manifest(content: bytes, path: str) -> Manifest:
    """Return the manifest in `content`.

    Args:
        content: the bytes of `manifest.json`
        path: path of the file, for messages

    Raises:
        NotJson: if the content is not JSON
        UserError: if it is not a manifest of this version, or contradicts itself
    """
    try:
        manifest = decode_json(content, Manifest)
    except BadJson as error:
        error_type = NotJson if error.is_cut else UserError
        raise error_type(f"{path} cannot be read: {error}; pack the dataset again") from error
    if manifest.version != VERSION:
        raise UserError(f"{path} has version {manifest.version}, this Sternum reads {VERSION}; pack the dataset again")
    for problem in _problems(manifest):
        raise UserError(f"{path} has changed since packing: {problem}; copy it again, or pack the dataset again")
    return manifest


def _problems(manifest: Manifest) -> Iterator[str]:
    """Yield each contradiction of a manifest to the format or to itself."""
    if not SET_NAME.fullmatch(manifest.name):
        yield f"name={_short(manifest.name)} must have {SET_NAME_RULE}"
    names = set()
    for number, shard in enumerate(manifest.shards):
        yield from (f"shards[{number}].{problem}" for problem in _shard_problems(shard))
        if shard.name in names:
            yield f"shards[{number}].name={_short(shard.name)} occurs twice"
        names.add(shard.name)
    total = sum(shard.samples for shard in manifest.shards)
    if total != manifest.samples:
        yield f"samples={manifest.samples}, but its shards hold {total}"
    if not min(1, total) <= manifest.patients <= total:
        yield f"patients={manifest.patients} does not fit {total} samples"
    if not 0 <= manifest.pixel_mean <= 1:
        yield f"pixel_mean={manifest.pixel_mean} must be between 0 and 1"
    if not _LEAST_PIXEL_STD <= manifest.pixel_std <= 0.5:  # 0.5 is that of black and white in equal parts
        yield f"pixel_std={manifest.pixel_std} must be between {_LEAST_PIXEL_STD} and 0.5"


def _shard_problems(shard: Shard) -> Iterator[str]:
    if not _SHARD_NAME.fullmatch(shard.name):
        yield f"name={_short(shard.name)} must be a plain file name that ends in .tar"
    for field in ("sha256", "index_sha256", "fingerprints_sha256"):
        value = getattr(shard, field)
        if value is not None and not _SHA256.fullmatch(value):
            yield f"{field}={_short(value)} must be 64 hexadecimal digits"
    if shard.tier_percent not in FRACTIONS_PERCENT:
        yield f"tier_percent={shard.tier_percent} must be one of {FRACTIONS_PERCENT}"
    if not 0 < shard.size_bytes < _MOST_BYTES:
        yield f"size_bytes={shard.size_bytes} must be positive and below 2^50"
    if not 0 < shard.samples * _LEAST_SAMPLE_BYTES <= shard.size_bytes:
        yield f"samples={shard.samples} do not fit its size_bytes={shard.size_bytes}"


def _short(text: str) -> str:
    """Return a text in quotes for a message, shortened, because a damaged manifest may hold any."""
    return repr(text if len(text) <= 100 else f"{text[:100]}...")


def read_index(folder: Path, shard: Shard) -> Records:
    """Return the INDEX_ROW rows of a local shard (samples,); raises UserError unless they match the manifest."""
    path = folder / shard.index_name
    return decode_index(_read(path, shard.index_sha256), str(path))


def read_fingerprints(folder: Path, shard: Shard) -> Records | None:
    """Return the FINGERPRINT rows of a local shard (samples,), None if it was packed without.

    Raises:
        UserError: unless they match the manifest
    """
    if shard.fingerprints_sha256 is None:
        return None
    path = folder / shard.fingerprints_name
    return decode_fingerprints(_read(path, shard.fingerprints_sha256), shard, str(path))


def _read(path: Path, expected_sha256: str) -> bytes:
    try:
        content = read_small(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; pack the dataset again") from error
    if sha256(content).hexdigest() != expected_sha256:
        raise UserError(f"{path} is not the file that {MANIFEST_NAME} describes; pack the dataset again")
    return content


def decode_index(content: bytes, path: str) -> Records:
    """Return the INDEX_ROW rows (samples,) of an index file; raises UserError, naming `path`, unless it is one."""
    return _decode_rows(content, INDEX_ROW, path, "an index of a shard")


def decode_fingerprints(content: bytes, shard: Shard, path: str) -> Records:
    """Return the FINGERPRINT rows (samples,) of a shard; raises UserError, naming `path`, unless they are its."""
    rows = _decode_rows(content, FINGERPRINT, path, "the fingerprints of a shard")
    _require_rows(rows, shard, path)
    return rows


def _decode_rows(content: bytes, row: np.dtype[np.void], path: str, kind: str) -> Records:
    """Return the rows of a `.npy` file; raises UserError unless it holds rows of this type.

    numpy's own reader evaluates the header with `ast`, which fails at times in threads of CPython 3.11.
    """
    rows_start = 10 + int.from_bytes(content[8:10], "little")
    expected = re.escape(f"{{'descr': {row.descr!r}, 'fortran_order': False, 'shape': (") + r"(\d{1,12}),\), } *\n"
    header = re.fullmatch(expected, content[10:rows_start].decode("latin1"))
    if header is None or not content.startswith(b"\x93NUMPY\x01\x00"):
        raise UserError(f"{path} is not {kind}; pack the dataset again")
    if len(content) != rows_start + int(header[1]) * row.itemsize:
        raise UserError(f"{path} does not have the {header[1]} rows that its header declares; pack the dataset again")
    return np.frombuffer(content, row, offset=rows_start)


def _require_rows(rows: Records, shard: Shard, path: str) -> None:
    if len(rows) != shard.samples:
        raise UserError(
            f"{path} has {len(rows)} rows, {MANIFEST_NAME} says {shard.samples} samples; pack the dataset again"
        )


def require_fitting(rows: Records, shard: Shard, path: str) -> None:
    """Raise UserError unless an index has a row for each sample of its shard, with what packing can have written.

    Every member is inside the tar, and every image has a size that an image may have.
    """
    _require_rows(rows, shard, path)
    size_bytes = np.uint64(shard.size_bytes)
    for member in ("image", "meta"):
        offset, length = rows[f"{member}_offset"], rows[f"{member}_bytes"].astype(np.uint64)
        outside = (offset < BLOCKSIZE) | (offset > size_bytes) | (length == 0) | (length > size_bytes - offset)
        if outside.any():
            row = int(outside.argmax())
            raise UserError(
                f"{path}, row {row}: {length[row]} bytes from offset {offset[row]} are not within the "
                f"{shard.size_bytes} bytes of {shard.name}; pack the dataset again"
            )
    height, width = (rows[side].astype(np.uint64) for side in ("height", "width"))
    impossible = (height * width == 0) | (height * width > MAX_PIXELS) | (np.maximum(height, width) > MAX_SIDE_PX)
    if impossible.any():
        row = int(impossible.argmax())
        raise UserError(
            f"{path}, row {row}: no packed image has {width[row]} x {height[row]} px; the limit is "
            f"{MAX_PIXELS // 10**6} megapixels and {MAX_SIDE_PX} px a side; pack the dataset again"
        )


def index_bytes(shard: Shard) -> int:
    """Return the largest size of a shard's index file: its rows, and a header that numpy pads."""
    return shard.samples * INDEX_ROW.itemsize + 4096


def fingerprints_bytes(shard: Shard) -> int:
    """Return the largest size of the file with a shard's fingerprints."""
    return shard.samples * FINGERPRINT.itemsize + 4096
