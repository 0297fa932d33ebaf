"""The samples of a catalog, encoded by workers."""

from collections.abc import Generator
from contextlib import closing
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import PIL
from PIL import features

from infra.extras import has_extra
from infra.parallel.workers import Workers
from sharding.datasets.files import LINK_OUT, leads_out
from sharding.format.writer import TarSample, tar_sample
from sharding.images.encode import NOT_READ, can_be_read, encode_file
from sharding.packing.catalog import Catalog, from_record
from sharding.packing.config import PackConfig

CRASHED: Final = "decoding it ends the process"
_IMAGES_A_TASK: Final = 8


def encoded_samples(config: PackConfig, catalog: Catalog, start: int) -> Generator[tuple[int, TarSample | str]]:
    """Yield for each position from `start` on the encoded sample, or the reason for rejecting it; close it when done.

    Raises:
        UserError: if the cluster cannot be joined, or has other versions than this machine
        RunFailed: if a node of it cannot read a file that this machine can
    """
    encode = partial(
        _encode,
        name=config.set_name,
        root=config.source,
        follow_links=config.follow_links,
        shorter_side_px=config.shorter_side_px,
        jpeg_quality=config.jpeg_quality,
        image_format=config.image_format,
        pass_through=config.pass_through,
    )

    def unread(record: bytes, result: TarSample | str) -> str | None:
        sample = from_record(record)
        path, span = config.source / sample.file, sample.member and sample.member[1:]
        return str(path) if result in NOT_READ and can_be_read(path, span) else None

    workers = Workers(config.workers, config.address)
    results = workers.map(
        encode, catalog.records(start), len(catalog) - start, _IMAGES_A_TASK, lambda _: CRASHED, unread
    )
    with closing(results):
        yield from enumerate(results, start)


def _encode(record: bytes, *, name: str, root: Path, follow_links: bool, **encoding: Any) -> TarSample | str:
    """Encode one sample in a worker, or return the reason for rejecting it."""
    sample = from_record(record)
    if not follow_links and leads_out(root, sample.file):
        return LINK_OUT
    image = encode_file(root / sample.file, **encoding, span=sample.member and sample.member[1:])
    return image if isinstance(image, str) else tar_sample(name, sample, image)


def made_by() -> str:
    """Name the versions of the programs that the bytes depend on."""
    try:
        version = metadata.version("sternum")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    made_by = f"sternum {version}, Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"
    if not has_extra("dicom"):
        return made_by
    return f"{made_by}, imagecodecs {metadata.version('imagecodecs')}"  # the pixels of lossy DICOM files depend on it
