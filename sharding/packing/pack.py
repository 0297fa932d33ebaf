"""`sternum shard`: a dataset packed into shards whose bytes are a function of (dataset, options, seed)."""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from math import sqrt
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import PIL
from PIL import features

from infra.errors import UserError, require
from infra.log import progress, say
from infra.parallel import ordered_map, worker_count
from sharding.datasets import OPTIONS, READERS, SIMULATED_MARKER, ReaderOptions
from sharding.datasets.cell import CellOptions
from sharding.datasets.dicom import DicomOptions
from sharding.datasets.folder import FolderOptions
from sharding.format.manifest import VERSION, Manifest, Rejection
from sharding.format.sample import Sample
from sharding.format.writer import ShardWriter, TarSample, tar_sample
from sharding.images.encode import encode_file
from sharding.packing.catalog import Catalog, from_row
from sharding.packing.destination import Destination, destination
from sharding.packing.job import FinishedShard, Job, Options, commit_shard, finish_job, is_packed, resume_job

_IMAGES_A_TASK: Final = 8
_MAX_SIDE_PX: Final = 8192


@dataclass(frozen=True)
class PackConfig:
    """What to pack, from where to where, and how.

    Args:
        dataset: name of the dataset: chexpert, chestxray14, cell, c19-cohen, covidgr, folder or dicom
        root: folder that holds the dataset as upstream ships it; only read
        out: folder for the shards, local or as a URL that fsspec opens, such as s3://BUCKET/FOLDER; it must not exist
            yet, be empty, or hold this very dataset, finished or not: the same command then goes on where it stopped
        shorter_side_px: images are reduced to this shorter side, never enlarged
        image_format: jpeg, or png, which loses nothing and takes three to five times the space
        jpeg_quality: 1 to 100
        pass_through: copy gray 8-bit JPEGs that are small enough and hold nothing but pixels, byte by byte
        shard_size_mb: no shard grows beyond this many megabytes (10^6), except for one sample larger than that
        shard_samples: no shard holds more samples than this; null is as many as its size in bytes allows
        seed: decides the order of the samples and which patients form the fractions of 1 % and 10 %
        workers: processes that encode; 0 is one for each CPU; the bytes do not depend on it
        cell: for dataset cell only: how images are grouped into patients
        folder: for dataset folder only: a table that describes the images, and the names of its columns
        dicom: for dataset dicom only: what may be packed
    """

    dataset: str
    root: Path
    out: str | Path
    shorter_side_px: int = 320
    image_format: Literal["jpeg", "png"] = "jpeg"
    jpeg_quality: int = 90
    pass_through: bool = False
    shard_size_mb: float = 256
    shard_samples: int | None = None
    seed: int = 0
    workers: int = 0
    cell: CellOptions = field(default_factory=CellOptions)
    folder: FolderOptions = field(default_factory=FolderOptions)
    dicom: DicomOptions = field(default_factory=DicomOptions)

    def __post_init__(self) -> None:
        """Check every value on its own."""
        require(self.dataset in READERS, f"dataset={self.dataset!r} is not known; take one of {', '.join(READERS)}")
        require(
            16 <= self.shorter_side_px <= _MAX_SIDE_PX,
            f"shorter_side_px={self.shorter_side_px} must be between 16 and {_MAX_SIDE_PX}; try 320",
        )
        require(1 <= self.jpeg_quality <= 100, f"jpeg_quality={self.jpeg_quality} must be from 1 to 100; try 90")
        require(
            not (self.pass_through and self.image_format == "png"),
            "pass_through=true copies JPEGs, which image_format='png' excludes; leave one of them out",
        )
        require(self.shard_size_mb > 0, f"shard_size_mb={self.shard_size_mb} must be above 0; try 256")
        require(
            self.shard_samples is None or self.shard_samples >= 1,
            f"shard_samples={self.shard_samples} must be 1 or more, or null",
        )
        require(self.seed >= 0, f"seed={self.seed} must not be negative; try 0")
        require(self.workers >= 0, f"workers={self.workers} must not be negative; 0 is one for each CPU")
        for name, options in OPTIONS.items():
            unused = self.dataset != name and getattr(self, name) != options()
            require(not unused, f"{name}.* are options of dataset {name}, not of {self.dataset}; leave them out")


def pack(config: PackConfig) -> Manifest:
    """Pack a dataset into `config.out`, or return its manifest when it stands there already.

    Samples lie in a seeded shuffle within shards of one official split and one fraction tier. What cannot be packed
    is listed in the manifest with its reason. The manifest is written last. Broken off at any moment, the same call
    goes on behind the last finished shard and ends with the same bytes; it takes the image files for unchanged.
    Raises UserError for a root that is not the dataset, keys that occur twice, a dataset without a single packable
    image, an `out` that holds something else, and a disk that is full.
    """
    place = destination(config.out)
    with closing(Catalog(config.dataset, progress(_items(config), "reading", unit="row"), config.seed)) as catalogue:
        job = Job(config.dataset, _options(config, catalogue), _made_by())
        manifest = is_packed(place, job, config.out)
        if manifest is not None and place.is_tidy():
            say(f"{config.out} holds this dataset already, packed with the same options; nothing to do")
            return manifest
        with place.held():
            if (manifest := is_packed(place, job, config.out)) is not None:  # stopped before it was tidied up
                place.finish()
                return manifest
            packing = _Packing(config, catalogue, place, resume_job(place, job, config.out))
            packing.run()
            manifest = packing.manifest(job)
            finish_job(place, manifest)
    return manifest


def _items(config: PackConfig) -> Iterator[Sample | Rejection]:
    try:
        yield from READERS[config.dataset](config.root, *_reader_options(config))
    except OSError as error:
        raise UserError(f"root={config.root}: {error.filename} cannot be read: {error.strerror}; check it") from error


def _reader_options(config: PackConfig) -> list[ReaderOptions]:
    """Return the options of the reader of this dataset, none if it takes none."""
    return [getattr(config, config.dataset)] if config.dataset in OPTIONS else []


def _options(config: PackConfig, catalogue: Catalog) -> Options:
    """Return what the bytes depend on, and a hash of what the reader said, so that no other root passes for this."""
    reader_options = {name: value for part in _reader_options(config) for name, value in asdict(part).items()}
    return {
        # Scores on simulated radiographs must never pass for scores on real ones.
        "simulated": (config.root / SIMULATED_MARKER).is_file(),
        "shorter_side_px": config.shorter_side_px,
        "image_format": config.image_format,
        "jpeg_quality": config.jpeg_quality,
        "pass_through": config.pass_through,
        "shard_size_mb": config.shard_size_mb,
        "shard_samples": config.shard_samples,
        "seed": config.seed,
        **{f"{config.dataset}.{name}": value for name, value in reader_options.items()},
        "samples_sha256": catalogue.sha256,
    }


class _Packing:
    """Writes the shards of one dataset that are not finished yet, and sums up all of them."""

    def __init__(
        self, config: PackConfig, catalogue: Catalog, place: Destination, finished: list[FinishedShard]
    ) -> None:
        self._config, self._catalogue, self._place, self._finished = config, catalogue, place, finished
        self._start = finished[-1].end if finished else 0
        self._names = Counter((record.shard.split, record.shard.tier_percent) for record in finished)
        self._rejected: list[tuple[int, str]] = []  # since the last finished shard
        self._sums = np.zeros(4, np.int64)  # source bytes, pixels, pixel and square sums of the shard being written
        self._kept: Future[None] | None = None

    def run(self) -> None:
        """Encode in worker processes and write in this one, in order; a thread puts finished shards into place."""
        samples = len(self._catalogue)
        dealt_with = samples - self._start
        if self._start:
            say(f"{self._config.out}: {self._start} of {samples} images are dealt with already; going on from there")
        began_s = time.perf_counter()
        writer: ShardWriter | None = None
        with ThreadPoolExecutor(1) as keeper, closing(self._encoded()) as encoded:
            try:
                for position, sample in progress(encoded, "packing", total=dealt_with):
                    if isinstance(sample, str):
                        self._rejected.append((position, sample))
                        continue
                    if writer is not None and not self._fits(writer, position, sample):
                        self._finish(writer, position, keeper)
                        writer = None
                    if writer is None:
                        writer = self._new_shard(position)
                    writer.add(sample)
                    self._sums += (sample.source_bytes, sample.pixels, sample.pixel_sum, sample.pixel_square_sum)
                if writer is not None:
                    self._finish(writer, samples, keeper)
                if self._kept is not None:
                    self._kept.result()
            finally:
                if writer is not None:
                    writer.close()
        duration_s = time.perf_counter() - began_s
        say(f"{self._config.out}: {dealt_with} images in {duration_s:.1f} s, {dealt_with / duration_s:.0f} images/s")

    def manifest(self, job: Job) -> Manifest:
        """Describe what was written; raises UserError when it is nothing."""
        positions = [*self._rejected, *(pair for record in self._finished for pair in record.rejected)]
        rejected = [
            *self._catalogue.rejected,
            *(Rejection(self._catalogue.path(position).as_posix(), reason) for position, reason in positions),
        ]
        if not self._finished:
            reasons = Counter(rejection.reason for rejection in rejected)
            told = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "it holds none"
            raise UserError(
                f"no image of dataset {job.dataset!r} in {self._config.root} can be packed: {told}; check root"
            )
        packed = np.ones(len(self._catalogue), bool)
        packed[[position for position, _ in positions]] = False
        pixels = sum(record.pixels for record in self._finished)
        total = sum(record.pixel_sum for record in self._finished)
        squares = sum(record.pixel_square_sum for record in self._finished)
        return Manifest(
            version=VERSION,
            dataset=job.dataset,
            made_by=job.made_by,
            options=job.options,
            samples=int(packed.sum()),
            patients=len(np.unique(self._catalogue.patients[packed])),
            pixel_mean=total / (pixels * 255),
            pixel_std=sqrt(pixels * squares - total**2) / (pixels * 255),
            shards=[record.shard for record in self._finished],
            rejected=sorted(rejected, key=lambda rejection: (rejection.path, rejection.reason)),
            source_bytes=sum(record.source_bytes for record in self._finished),
        )

    def _encoded(self) -> Generator[tuple[int, TarSample | str]]:
        """Yield for each position what was encoded, or the reason why it cannot be."""
        config, todo = self._config, len(self._catalogue) - self._start
        encode = partial(
            _encode,
            dataset=config.dataset,
            root=config.root,
            shorter_side_px=config.shorter_side_px,
            jpeg_quality=config.jpeg_quality,
            image_format=config.image_format,
            pass_through=config.pass_through,
        )
        workers = worker_count(config.workers, todo, _IMAGES_A_TASK)
        with closing(ordered_map(encode, self._catalogue.rows(self._start), workers, _IMAGES_A_TASK)) as results:
            yield from enumerate(results, self._start)

    def _fits(self, writer: ShardWriter, position: int, sample: TarSample) -> bool:
        return (
            (writer.split, writer.tier_percent) == self._catalogue.group(position)
            and writer.size_with(sample) <= int(self._config.shard_size_mb * 1e6)
            and (self._config.shard_samples is None or writer.samples < self._config.shard_samples)
        )

    def _new_shard(self, position: int) -> ShardWriter:
        split, tier_percent = group = self._catalogue.group(position)
        name = f"{self._config.dataset}-{split or 'all'}-{tier_percent:03d}-{self._names[group]:05d}.tar"
        self._names[group] += 1
        return ShardWriter(self._place.workplace / name, split, tier_percent)

    def _finish(self, writer: ShardWriter, position: int, keeper: ThreadPoolExecutor) -> None:
        """End a shard; the one before it must be in its place by now, so that finished shards never leave a gap."""
        record = FinishedShard(writer.finish(), self._start, position, self._rejected, *self._sums.tolist())
        if self._kept is not None:
            self._kept.result()
        self._kept = keeper.submit(commit_shard, self._place, record)
        self._finished.append(record)
        self._start, self._rejected, self._sums = position, [], np.zeros(4, np.int64)


def _encode(row: bytes, *, dataset: str, root: Path, **encoding: Any) -> TarSample | str:
    """Encode one sample of the catalogue, or return the reason why it is rejected; runs in a worker."""
    sample = from_row(row)
    image = encode_file(root / sample.path, **encoding)
    return image if isinstance(image, str) else tar_sample(dataset, sample, image)


def _made_by() -> str:
    """Name what the bytes depend on beside the options."""
    try:
        version = metadata.version("sternum")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    return f"sternum {version}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
