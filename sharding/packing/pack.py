"""`sternum shard`: packs a dataset into shards whose bytes are a function of (dataset, options, seed)."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np

from infra.configuration.options import key, setting
from infra.errors import RunFailed, UserError
from infra.log import progress, say
from infra.storage.files import real_path
from sharding.datasets import OPTIONS, READERS, ReaderOptions, recorded, root_of
from sharding.datasets.files import SIMULATED_MARKER, UNUSED_TABLE
from sharding.datasets.label_table import LabelTable
from sharding.format.copies import COPY, read_copies
from sharding.format.label_counts import count_labels
from sharding.format.manifest import MANIFEST_NAME, VERSION, Manifest, Options, Rejection
from sharding.format.sample import Sample
from sharding.format.writer import ShardWriter, TarSample
from sharding.images.encode import MISSING
from sharding.packing.catalog import Catalog
from sharding.packing.completeness import absent_parts, gaps, nothing_packed, require_files
from sharding.packing.config import PackConfig
from sharding.packing.destination import Destination, open_destination
from sharding.packing.download import download_tars
from sharding.packing.encoded import encoded_samples, made_by
from sharding.packing.job import FinishedShard, Job, commit_shard, finish_job, packed_manifest, resume_job

__all__ = ["PackConfig", "pack"]


def pack(config: PackConfig) -> Manifest:
    """Pack a dataset into `config.out`, or return its manifest if it is packed already.

    Samples are in a seeded order within shards of one official split and one fraction tier. The manifest lists what
    was not packed with the reasons, and is written last. After an interruption at any moment, the same call continues
    after the last finished shard and ends with the same bytes, provided that the image files have not changed.

    Args:
        config: the dataset, the destination and the encoding

    Raises:
        UserError: if the root is not the dataset, a key occurs twice, no image can be packed, `out` holds something
            else or the root, or the disk is full
        RunFailed: if an object store fails, or the dataset is not complete and `config.allow_missing` is off: before
            anything is written if files are missing, afterwards if a split or a class has no image that can be packed
    """
    destination = open_destination(config.out)
    _require_apart(config, destination.folder)
    if config.is_remote:
        download_tars(str(config.root), config.source)
    else:
        config = replace(config, root=root_of(config.dataset, config.source))
    with closing(Catalog(config.set_name, progress(_items(config), "reading", unit="row"), config.seed)) as catalog:
        job = Job(config.dataset, _options(config, catalog), made_by(), config.set_name)
        manifest = packed_manifest(destination, job, config.out)
        if manifest is None or not destination.is_tidy():
            require_files(config, catalog)
            manifest = _packed(config, catalog, destination, job)
        else:
            say(f"{config.out} holds this dataset already, packed with the same options; nothing to do")
        of_reader = set(catalog.rejected)
        rejected = {item.path: item.reason for item in manifest.rejected if item not in of_reader}
        if not config.allow_missing and (lost := absent_parts(config, catalog) + gaps(catalog.samples(), rejected)):
            raise RunFailed(
                f"{config.out} is packed without {', '.join(lost)}; {MANIFEST_NAME} lists the reasons; repair the "
                f"files and pack into another folder, or accept this with --{key(config, 'allow_missing')}=true"
            )
    return manifest


def _require_apart(config: PackConfig, out: Path | None) -> None:
    """Raise UserError if the shards would lie among the images, where the next start would read them as such."""
    root = real_path(config.source)
    if out is not None and (out.is_relative_to(root) or root.is_relative_to(out)):
        raise UserError(
            f"{setting(config, 'out')} and {setting(config, 'root')} must not contain one another, or shards would be "
            f"among the images; choose another folder for {key(config, 'out')}"
        )


def _packed(config: PackConfig, catalog: Catalog, destination: Destination, job: Job) -> Manifest:
    with destination.locked():
        if (manifest := packed_manifest(destination, job, config.out)) is not None:  # interrupted before cleanup
            destination.finish()
            return manifest
        packing = _Packing(config, catalog, destination, job, resume_job(destination, job, config.out))
        packing.run()
        manifest = packing.manifest()
        finish_job(destination, job, config.out, manifest)
    return manifest


def _items(config: PackConfig) -> Iterator[Sample | Rejection]:
    try:
        items = READERS[config.dataset](config.source, *_reader_options(config), follow_links=config.follow_links)
        if config.labels.csv is not None:
            pseudonyms = config.dicom.pseudonyms if config.dataset == "dicom" else None
            items = LabelTable(config.labels, pseudonyms).label_samples(_without_table(items, config))
        yield from items if config.exclude is None else _without_copies(items, config.exclude, config.set_name)
    except OSError as error:
        raise UserError(f"root={config.source}: {error.filename} cannot be read: {error.strerror}; check it") from error


def _without_table(items: Iterator[Sample | Rejection], config: PackConfig) -> Iterator[Sample | Rejection]:
    """Leave out the table of labels, which may lie below the root, where the reader knows no use for it."""
    assert config.labels.csv is not None, "only a table can be left out"
    table = real_path(config.labels.csv)
    for item in items:
        is_unused = isinstance(item, Rejection) and item.reason == UNUSED_TABLE
        if not (is_unused and real_path(config.source / item.path) == table):
            yield item


def _without_copies(items: Iterator[Sample | Rejection], exclude: Path, name: str) -> Iterator[Sample | Rejection]:
    """Reject the copies that an audit lists, and warn if some of them are not among the items."""
    copies = read_copies(exclude, name)
    found = 0
    for item in items:
        if isinstance(item, Sample) and item.key in copies:
            found += 1
            yield Rejection(item.key if item.path_identifies else item.path.as_posix(), COPY)
        else:
            yield item
    if found < len(copies):
        say(f"warning: {len(copies) - found} of the {len(copies)} copies of {name} in {exclude} are not below root")


def _reader_options(config: PackConfig) -> list[ReaderOptions]:
    """Return the options of this dataset's reader, an empty list if it has none."""
    return [getattr(config, config.dataset)] if config.dataset in OPTIONS else []


def _options(config: PackConfig, catalog: Catalog) -> Options:
    """Return the options that the bytes depend on, and a hash of the samples, which tells this root from others."""
    reader_options = {name: value for part in _reader_options(config) for name, value in recorded(part).items()}
    return {
        # So that scores on simulated radiographs are never mistaken for scores on real ones.
        "simulated": (config.source / SIMULATED_MARKER).is_file(),
        "shorter_side_px": config.shorter_side_px,
        "image_format": config.image_format,
        "jpeg_quality": config.jpeg_quality,
        "pass_through": config.pass_through,
        "shard_size_mb": config.shard_size_mb,
        "shard_samples": config.shard_samples,
        "seed": config.seed,
        **({"follow_links": True} if config.follow_links else {}),
        **{f"{config.dataset}.{name}": value for name, value in reader_options.items()},
        **{f"labels.{name}": value for name, value in config.labels.recorded().items()},
        "samples_sha256": catalog.sha256,
    }


class _Packing:
    """Writes the unfinished shards of a dataset, and the manifest of all shards."""

    def __init__(
        self, config: PackConfig, catalog: Catalog, destination: Destination, job: Job, finished: list[FinishedShard]
    ) -> None:
        self._config, self._catalog, self._destination = config, catalog, destination
        self._job, self._finished = job, finished
        self._start = finished[-1].end if finished else 0
        self._names = Counter((record.shard.split, record.shard.tier_percent) for record in finished)
        self._rejected: list[tuple[int, str]] = []  # since the last finished shard
        self._sums = np.zeros(4, np.int64)  # source bytes, pixels, pixel and square sums of the shard being written
        self._commit: Future[None] | None = None

    def run(self) -> None:
        """Encode in worker processes and write in this one, in order; a thread commits finished shards."""
        samples = len(self._catalog)
        remaining = samples - self._start
        if self._start:
            say(f"{self._config.out}: {self._start} of {samples} images are packed already; continuing with the rest")
        began_s = time.perf_counter()
        read = 0
        writer: ShardWriter | None = None
        with (
            ThreadPoolExecutor(1) as committer,
            closing(encoded_samples(self._config, self._catalog, self._start)) as encoded,
        ):
            try:
                for position, sample in progress(encoded, "packing", total=remaining):
                    read += sample != MISSING
                    if isinstance(sample, str):
                        self._rejected.append((position, sample))
                        continue
                    if writer is not None and not self._fits(writer, position, sample):
                        self._finish(writer, position, committer)
                        writer = None
                    if writer is None:
                        writer = self._new_shard(position)
                    writer.add(sample)
                    self._sums += (sample.source_bytes, sample.pixels, sample.pixel_sum, sample.pixel_square_sum)
                if writer is not None:
                    self._finish(writer, samples, committer)
                if self._commit is not None:
                    self._commit.result()
            finally:
                if writer is not None:
                    writer.close()
        duration_s = time.perf_counter() - began_s
        say(f"{self._config.out}: {read} images in {duration_s:.1f} s, {read / duration_s:.0f} images/s")

    def manifest(self) -> Manifest:
        """Return the manifest of all shards; raises UserError if there are none."""
        positions = [*self._rejected, *(pair for record in self._finished for pair in record.rejected)]
        rejected = [
            *self._catalog.rejected,
            *(Rejection(self._catalog.path(position).as_posix(), reason) for position, reason in positions),
        ]
        if not self._finished:
            raise nothing_packed(self._config, rejected)
        packed = np.ones(len(self._catalog), bool)
        packed[[position for position, _ in positions]] = False
        pixels = sum(record.pixels for record in self._finished)
        total = sum(record.pixel_sum for record in self._finished)
        squares = sum(record.pixel_square_sum for record in self._finished)
        return Manifest(
            version=VERSION,
            dataset=self._job.dataset,
            name=self._job.name,
            made_by=self._job.made_by,
            options=self._job.options,
            samples=int(packed.sum()),
            patients=len(np.unique(self._catalog.patients[packed])),
            pixel_mean=total / (pixels * 255),
            pixel_std=sqrt(pixels * squares - total**2) / (pixels * 255),
            shards=[record.shard for record in self._finished],
            rejected=sorted(rejected, key=lambda rejection: (rejection.path, rejection.reason)),
            source_bytes=sum(record.source_bytes for record in self._finished),
            labels=count_labels(
                sample.labels for sample, is_packed in zip(self._catalog.samples(), packed, strict=True) if is_packed
            ),
        )

    def _fits(self, writer: ShardWriter, position: int, sample: TarSample) -> bool:
        return (
            (writer.split, writer.tier_percent) == self._catalog.group(position)
            and writer.size_with(sample) <= int(self._config.shard_size_mb * 1e6)
            and (self._config.shard_samples is None or writer.samples < self._config.shard_samples)
        )

    def _new_shard(self, position: int) -> ShardWriter:
        split, tier_percent = group = self._catalog.group(position)
        name = f"{self._config.set_name}-{split or 'all'}-{tier_percent:03d}-{self._names[group]:05d}.tar"
        self._names[group] += 1
        return ShardWriter(self._destination.staging / name, split, tier_percent)

    def _finish(self, writer: ShardWriter, position: int, committer: ThreadPoolExecutor) -> None:
        """End a shard, and wait for the commit of the one before, so that finished shards never leave a gap."""
        record = FinishedShard(writer.finish(), self._start, position, self._rejected, *self._sums.tolist())
        if self._commit is not None:
            self._commit.result()
        self._commit = committer.submit(commit_shard, self._destination, self._job, self._config.out, record)
        self._finished.append(record)
        self._start, self._rejected, self._sums = position, [], np.zeros(4, np.int64)
