"""`sternum shard`: a dataset packed into shards whose bytes are a function of (dataset, options, seed)."""

import hashlib
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from math import sqrt
from pathlib import Path
from typing import Final

import msgspec
import PIL
from PIL import features

from infra.errors import UserError, require
from infra.files import atomic_folder
from infra.log import progress, say
from infra.rng import permutation
from sharding.datasets import READERS, SIMULATED_MARKER
from sharding.encode import EncodedImage, encode_file
from sharding.manifest import NAME, VERSION, Manifest, Rejection, Shard, read_manifest, write_manifest
from sharding.parallel import ordered_map, worker_count
from sharding.sample import Sample
from sharding.splits import patient_tiers
from sharding.verify import check_files
from sharding.writer import ShardWriter, metadata_json

Options = dict[str, int | float | str | bool | None]

_IMAGES_A_TASK: Final = 8
_SPLIT_ORDER: Final = ("train", "val", "test", None)
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{1,90}")  # with its extension it fits the name of a plain ustar header
_MAX_SIDE_PX: Final = 8192


@dataclass(frozen=True)
class PackConfig:
    """What to pack, from where to where, and how.

    Args:
        dataset: name of the dataset: chexpert, chestxray14 or cell
        root: folder that holds the dataset as upstream ships it; only read
        out: folder for the shards; it must not exist yet, be empty, or hold this very dataset
        shorter_side_px: images are reduced to this shorter side, never enlarged
        jpeg_quality: 1 to 100
        shard_size_mb: no shard grows beyond this many megabytes (10^6), except for one sample larger than that
        seed: decides the order of the samples and which patients form the fractions of 1 % and 10 %
        workers: processes that encode; 0 is one for each CPU; the bytes do not depend on it
    """

    dataset: str
    root: Path
    out: Path
    shorter_side_px: int = 320
    jpeg_quality: int = 90
    shard_size_mb: float = 256
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Check every value on its own."""
        require(self.dataset in READERS, f"dataset={self.dataset!r} is not known; take one of {', '.join(READERS)}")
        require(
            16 <= self.shorter_side_px <= _MAX_SIDE_PX,
            f"shorter_side_px={self.shorter_side_px} must be between 16 and {_MAX_SIDE_PX}; try 320",
        )
        require(1 <= self.jpeg_quality <= 100, f"jpeg_quality={self.jpeg_quality} must be from 1 to 100; try 90")
        require(self.shard_size_mb > 0, f"shard_size_mb={self.shard_size_mb} must be above 0; try 256")
        require(self.seed >= 0, f"seed={self.seed} must not be negative; try 0")
        require(self.workers >= 0, f"workers={self.workers} must not be negative; 0 is one for each CPU")


def pack(config: PackConfig) -> Manifest:
    """Pack a dataset into `config.out`, or return its manifest when it stands there already.

    Samples lie in a seeded shuffle within shards of one official split and one fraction tier. What cannot be packed
    is listed in the manifest with its reason. The folder appears whole or not at all. Raises UserError for a root
    that is not the dataset, keys that occur twice, a dataset without a single packable image, an `out` that
    holds something else, and a disk that is full.
    """
    samples, rejected = _read_dataset(config)
    options: Options = {
        # Scores on simulated radiographs must never pass for scores on real ones.
        "simulated": (config.root / SIMULATED_MARKER).is_file(),
        "shorter_side_px": config.shorter_side_px,
        "jpeg_quality": config.jpeg_quality,
        "shard_size_mb": config.shard_size_mb,
        "seed": config.seed,
        "samples_sha256": _fingerprint(samples),
    }
    out = config.out.resolve()
    if (manifest := _already_packed(out, config.dataset, options)) is not None:
        say(f"{config.out} holds this dataset already, packed with the same options; nothing to do")
        return manifest
    with atomic_folder(out) as folder:
        packing = _Packing(folder, config, rejected)
        packing.run(_in_order(samples, config.seed))
        manifest = packing.manifest(options)
        write_manifest(folder, manifest)
    return manifest


def _read_dataset(config: PackConfig) -> tuple[list[Sample], list[Rejection]]:
    """Return the samples that may be packed, sorted by key, and the rows and files that may not."""
    samples: dict[str, Sample] = {}
    rejected: list[Rejection] = []
    for item in _items(config):
        if isinstance(item, Rejection):
            rejected.append(item)
        elif item.path.is_absolute() or ".." in item.path.parts:
            rejected.append(Rejection(item.path.as_posix(), "path leads out of the dataset's root"))
        elif _KEY.fullmatch(item.key) is None:
            rejected.append(Rejection(item.path.as_posix(), "name is not 1 to 90 letters, digits, _ and -"))
        elif (other := samples.setdefault(item.key, item)) is not item:
            raise UserError(f"{other.path} and {item.path} have one key, {item.key!r}; remove one of them")
    return [samples[key] for key in sorted(samples)], rejected


def _items(config: PackConfig) -> Iterator[Sample | Rejection]:
    try:
        yield from READERS[config.dataset](config.root)
    except OSError as error:
        raise UserError(f"root={config.root}: {error.filename} cannot be read: {error.strerror}; check it") from error


def _fingerprint(samples: Iterable[Sample]) -> str:
    """Hash what the reader said, so that another root with the same options is not taken for this one."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(msgspec.json.encode([sample.key, sample.metadata()]))
    return digest.hexdigest()


def _already_packed(out: Path, dataset: str, options: Options) -> Manifest | None:
    """Return the manifest when `out` holds this dataset with these options, None when it is free.

    Raises UserError when anything else stands there, or when what stands there is not whole.
    """
    if not out.exists():
        return None
    require(out.is_dir(), f"out={out} is a file; choose another folder")
    names = sorted(path.name for path in out.iterdir())
    if not names:
        require(not out.is_mount(), f"out={out} is a mount point, which cannot be renamed; choose a folder inside it")
        return None
    require(NAME in names, f"out={out} holds other files, {names[0]!r} for one; choose an empty or a new folder")
    manifest = read_manifest(out)
    present = {"dataset": manifest.dataset} | manifest.options
    asked = {"dataset": dataset} | options
    different = [name for name in {**asked, **present} if asked.get(name) != present.get(name)]
    if different:
        name = different[0]
        what = "other samples" if name == "samples_sha256" else f"{name}={present.get(name)!r}, not {asked.get(name)!r}"
        raise UserError(f"out={out} holds dataset {manifest.dataset!r} packed with {what}; choose another folder")
    problems = check_files(out, manifest)
    require(not problems, f"out={out} holds this dataset, but not whole: {'; '.join(problems[:3])}; delete it first")
    return manifest


def _in_order(samples: list[Sample], seed: int) -> list[tuple[Sample, int]]:
    """Shuffle by seed, then group by official split and tier, so that a fraction is a choice of shards."""
    tiers = patient_tiers((sample.patient for sample in samples), seed)
    shuffled = [samples[position] for position in permutation(len(samples), seed, "pack-order")]
    ordered = [(sample, tiers[sample.patient]) for sample in shuffled]
    ordered.sort(key=lambda pair: (_SPLIT_ORDER.index(pair[0].split), pair[1]))
    return ordered


class _Packing:
    """Writes the shards of one dataset and sums up; the sums are integers, so they are exact."""

    def __init__(self, folder: Path, config: PackConfig, rejected: list[Rejection]) -> None:
        self._folder, self._config, self._rejected = folder, config, rejected
        self._shards: list[Shard] = []
        self._patients: set[str] = set()
        self._source_bytes = self._pixels = self._pixel_sum = self._pixel_square_sum = 0

    def run(self, ordered: list[tuple[Sample, int]]) -> None:
        """Encode in worker processes and write in this one, in order."""
        shard_bytes = int(self._config.shard_size_mb * 1e6)
        names: Counter[str] = Counter()
        writer: ShardWriter | None = None
        with closing(self._encode(ordered)) as encoded:
            try:
                for sample, tier, image in progress(encoded, "packing", total=len(ordered)):
                    content = metadata_json(sample, image)
                    if writer is not None and (
                        (writer.split, writer.tier_percent) != (sample.split, tier)
                        or writer.size_with(image.jpeg, content) > shard_bytes
                    ):
                        self._shards.append(writer.finish())
                        writer = None
                    if writer is None:
                        group = f"{self._config.dataset}-{sample.split or 'all'}-{tier:03d}"
                        name = f"{group}-{names[group]:05d}.tar"
                        names[group] += 1
                        writer = ShardWriter(self._folder / name, self._config.dataset, sample.split, tier)
                    writer.add(sample, image, content)
                    self._count(sample, image)
                if writer is not None:
                    self._shards.append(writer.finish())
            finally:
                if writer is not None:
                    writer.close()

    def manifest(self, options: Options) -> Manifest:
        """Describe what was written; raises UserError when it is nothing."""
        if not self._shards:
            reasons = Counter(rejection.reason for rejection in self._rejected)
            told = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "it holds none"
            raise UserError(
                f"no image of dataset {self._config.dataset!r} in {self._config.root} can be packed: {told}; check root"
            )
        pixels, total = self._pixels, self._pixel_sum
        return Manifest(
            version=VERSION,
            dataset=self._config.dataset,
            made_by=_made_by(),
            options=options,
            samples=sum(shard.samples for shard in self._shards),
            patients=len(self._patients),
            pixel_mean=total / (pixels * 255),
            pixel_std=sqrt(pixels * self._pixel_square_sum - total**2) / (pixels * 255),
            shards=self._shards,
            rejected=sorted(self._rejected, key=lambda rejection: (rejection.path, rejection.reason)),
            source_bytes=self._source_bytes,
        )

    def _encode(self, ordered: list[tuple[Sample, int]]) -> Generator[tuple[Sample, int, EncodedImage]]:
        """Yield what could be encoded, with its tier, and note the rest as rejected."""
        config = self._config
        encode = partial(encode_file, shorter_side_px=config.shorter_side_px, jpeg_quality=config.jpeg_quality)
        paths = (config.root / sample.path for sample, _ in ordered)
        workers = worker_count(config.workers, len(ordered), _IMAGES_A_TASK)
        with closing(ordered_map(encode, paths, workers, _IMAGES_A_TASK)) as results:
            for (sample, tier), result in zip(ordered, results, strict=True):
                if isinstance(result, str):
                    self._rejected.append(Rejection(sample.path.as_posix(), result))
                else:
                    yield sample, tier, result

    def _count(self, sample: Sample, image: EncodedImage) -> None:
        self._patients.add(sample.patient)
        self._source_bytes += image.source_bytes
        self._pixels += image.height * image.width
        self._pixel_sum += image.pixel_sum
        self._pixel_square_sum += image.pixel_square_sum


def _made_by() -> str:
    """Name what the bytes depend on beside the options."""
    try:
        version = metadata.version("sternum")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"sternum {version}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
