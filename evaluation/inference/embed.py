"""`sternum embed`: the features of many images as one file, with what identifies each image."""

import csv
import hashlib
import io
import os
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from evaluation.inference.backbones import NamedBackbone, name_backbone
from evaluation.inference.config import DICOM, EmbedConfig
from evaluation.inference.embedded_parts import as_on_cluster, embedded_parts
from evaluation.inference.embedder import Embedder, build_embedder
from evaluation.inference.feature_files import require_known, write_features
from evaluation.inference.images import (
    BATCHES_A_PART,
    FileImages,
    ImageSource,
    ShardImages,
    nothing_but_refused,
    require_one_kind,
)
from evaluation.inference.parts import PartFolder
from infra.configuration.options import key, setting
from infra.errors import require
from infra.log import progress, say
from infra.parallel.workers import Workers
from infra.ranks.processes import Ranks
from infra.storage.files import disk_errors, write_atomic
from infra.storage.locks import locked
from sharding.datasets.image_files import DicomSet
from sharding.datasets.pseudonyms import read_key
from sharding.format.manifest import Rejection
from sharding.images.encoding import Encoding

REFUSED: Final = ".refused.csv"  # in place of the suffix of the features
_POLL_S: Final = 0.5


class Embedded(NamedTuple):
    """What became of the images.

    Attributes:
        images: number of images in the file
        refused: the files that are no images
    """

    images: int
    refused: list[Rejection]


def embed(config: EmbedConfig, ranks: Ranks) -> Embedded:
    """Write the features of all images to `config.out`; each rank computes a share of them.

    A killed command leaves its finished parts beside the file, and the same command continues with them.

    Args:
        config: the images, the backbone and the file
        ranks: this process among all

    Raises:
        UserError: if there are no images or no such backbone, or the disk is full
        RunFailed: if no file is an image, or a checkpoint or a sample of a shard is damaged
    """
    require_known(config.out, key(config, "out"))
    are_shards = require_one_kind(config.source, key(config, "source"))
    require(
        not are_shards or config.pseudonym_key is None,
        f"{setting(config, 'pseudonym_key')} is for DICOM files, but {key(config, 'source')} names shards, which have "
        "their pseudonyms; leave it out",
    )
    backbone = name_backbone(
        config.backbone,
        setting(config, "backbone"),
        config.input,
        config.probe_fit,
        mirrored=config.mirrored,
        fetch=config.data.fetch,
    )
    files = None if are_shards else _files(config, backbone.encoding, ranks)
    sources = [files] if files else _shards(config)
    embedder = build_embedder(
        backbone.network,
        backbone.preprocessing,
        view_executor=config.executor,
        local_batch=config.local_batch,
        ranks=ranks,
    )
    if config.address is not None:
        require(
            ranks.world == 1, f"{setting(config, 'address')} names a Ray cluster; start one process, without torchrun"
        )
        embedder = as_on_cluster(embedder, config.address)
    workers = Workers(config.workers or max(1, len(os.sched_getaffinity(0)) // ranks.local_world), config.address)
    folder = PartFolder(config.out)
    with locked(folder.path, "embedding") if ranks.is_first else nullcontext():
        names = _compute(embedder, sources, folder, ranks, workers)
        if not ranks.is_first:
            return Embedded(0, [])
        while not all(map(folder.has, names)):  # torchrun ends this process if another one fails
            time.sleep(_POLL_S)
        embedded = _join(config.out, folder, names, files, _about(backbone, embedder, are_shards))
        folder.remove()
    return embedded


def _shards(config: EmbedConfig) -> list[ImageSource]:
    fetch = config.data.fetch
    return [ShardImages(location, config.local_batch, BATCHES_A_PART, fetch) for location in config.source]


def _files(config: EmbedConfig, encoding: Encoding, ranks: Ranks) -> FileImages:
    files = FileImages(
        [Path(location) for location in config.source],
        encoding,
        config.local_batch,
        BATCHES_A_PART,
        follow_links=config.follow_links,
        dicom_set=_dicom_set(config),
    )
    files.require_own_keys()
    if ranks.is_first:
        say(f"image files are prepared as packing does it: {encoding}")
    return files


def _dicom_set(config: EmbedConfig) -> DicomSet | None:
    if config.pseudonym_key is None:
        return None
    return DicomSet(config.name or DICOM, read_key(config.pseudonym_key, key(config, "pseudonym_key")))


def _compute(
    embedder: Embedder, sources: Sequence[ImageSource], folder: PartFolder, ranks: Ranks, workers: Workers
) -> list[str]:
    """Compute this rank's share of the parts that are not finished; return the names of all parts, in order."""
    identity = embedder.identity
    by_source = [[_hash(identity, name) for name in source.names] for source in sources]
    names = [name for of_source in by_source for name in of_source]
    share = names[ranks.rank :: ranks.world]
    if ranks.is_first:
        folder.keep_only(names)
    missing = {name for name in share if not folder.has(name)}
    if len(missing) < len(share):
        say(f"{len(share) - len(missing)} of {len(share)} parts are finished already; continuing with the rest")
    for source, of_source in zip(sources, by_source, strict=True):
        numbers = [number for number, name in enumerate(of_source) if name in missing]
        with closing(embedded_parts(embedder, source, numbers, workers)) as parts:
            for number, part in zip(numbers, progress(parts, "embedding", len(numbers), "part"), strict=True):
                folder.write(of_source[number], part)
    return names


def _join(
    out: Path, folder: PartFolder, names: Sequence[str], files: FileImages | None, about: dict[str, Any]
) -> Embedded:
    """Write the features of all parts as one file, and the list of the refused files beside it."""
    refused = list(files.refused if files else ())
    images = 0
    filled = []
    for name in names:
        part = folder.read(name)
        refused += part.refused
        images += len(part.records)
        filled += [name] * bool(part.records)
    if not filled:
        raise nothing_but_refused(refused)
    write_features(out, map(folder.read, filled), about)
    _write_refused(out.with_suffix(REFUSED), refused)
    return Embedded(images, refused)


def _about(backbone: NamedBackbone, embedder: Embedder, are_shards: bool) -> dict[str, Any]:
    return {
        "sternum": version("sternum"),
        **backbone.about,
        "preprocessing": asdict(embedder.preprocessing),
        "encoding": None if are_shards else asdict(backbone.encoding),
    }


def _write_refused(path: Path, refused: Sequence[Rejection]) -> None:
    """Write the list of the refused files, or remove that of an earlier command."""
    if not refused:
        with disk_errors(path):
            path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("path", "reason"), *((item.path, item.reason) for item in refused)])
    write_atomic(path, text.getvalue())


def _hash(*values: str) -> str:
    return hashlib.sha256(" ".join(values).encode()).hexdigest()
