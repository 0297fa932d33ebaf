"""Packing speed compared with its limit and with other libraries: images/s of the same images.

All take turns; figures are medians of the repeats.

sternum      `sternum shard` as a user calls it: several processes, manifest, index, checksums
limit        only decoding, reducing and encoding, in as many processes; nothing is written
webdataset   the same decoding, reducing and encoding in a plain loop, written by webdataset.ShardWriter
streaming    the same, written by mosaicml-streaming's MDSWriter, if installed

The images are simulated radiographs; --root adds a folder of real ones.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.common import installed, machine, table
from infra.parallel.process_map import ordered_map, worker_count
from infra.storage.files import write_atomic
from sharding.datasets.folder import FolderOptions
from sharding.images.encode import EncodedImage, encode_file
from sharding.packing.pack import PackConfig, pack
from sharding.simulation.datasets import write_cell

SHORTER_SIDE_PX, JPEG_QUALITY, SHARD_MB = 320, 90, 64
ENCODE = partial(encode_file, shorter_side_px=SHORTER_SIDE_PX, jpeg_quality=JPEG_QUALITY)


def encode(path: Path) -> bytes:
    """Return an image as it is packed."""
    image = ENCODE(path)
    assert isinstance(image, EncodedImage), f"{path} was rejected: {image}"
    return image.content


def encoded_bytes(path: Path) -> int:
    """Encode an image and return only its size, so that no image travels between processes."""
    return len(encode(path))


def run_sternum(root: Path, dataset: str, paths: Sequence[Path], out: Path, workers: int) -> None:
    """Pack by `pack`."""
    options = FolderOptions()
    config = PackConfig(
        dataset,
        root,
        out,
        SHORTER_SIDE_PX,
        jpeg_quality=JPEG_QUALITY,
        shard_size_mb=SHARD_MB,
        workers=workers,
        folder=options,
    )
    assert pack(config).samples == len(paths), "an image was rejected, so the rates are not comparable"


def run_limit(root: Path, dataset: str, paths: Sequence[Path], out: Path, workers: int) -> None:
    """Encode in the same number of processes and write nothing."""
    assert sum(ordered_map(encoded_bytes, paths, workers, chunk=8)) > 0


def run_webdataset(root: Path, dataset: str, paths: Sequence[Path], out: Path, workers: int) -> None:
    """Pack by the loop in webdataset's documentation."""
    import webdataset  # noqa: PLC0415 - workers of the others do not need it

    out.mkdir()
    with webdataset.ShardWriter(str(out / "%06d.tar"), maxsize=SHARD_MB * 1e6, verbose=0) as writer:
        for path in paths:
            writer.write({"__key__": path.stem, "jpg": encode(path), "json": {"path": path.name}})


def run_streaming(root: Path, dataset: str, paths: Sequence[Path], out: Path, workers: int) -> None:
    """Pack by the loop in mosaicml-streaming's documentation."""
    from streaming import MDSWriter  # noqa: PLC0415 - it may not be installed

    columns = {"jpg": "bytes", "json": "json"}
    with MDSWriter(out=str(out), columns=columns, hashes=["sha256"], size_limit=SHARD_MB * 10**6) as writer:
        for path in paths:
            writer.write({"jpg": encode(path), "json": {"path": path.name}})


def measure(root: Path, dataset: str, workers: int, repeats: int, folder: Path) -> dict[str, list[float]]:
    """Return the images/s of all packers in each repeat; they take turns, so that a slow minute hits all."""
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    ways: dict[str, Callable[[Path, str, Sequence[Path], Path, int], None]] = {
        "sternum": run_sternum,
        "limit": run_limit,
        "webdataset": run_webdataset,
    }
    if installed("streaming"):
        ways["streaming"] = run_streaming
    workers = worker_count(workers, len(paths), 8)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for path in paths:
        path.read_bytes()  # all ways read from the page cache
    for repeat in range(repeats):
        for name, run in ways.items():
            out = folder / f"{name}-{repeat}"
            began_s = time.perf_counter()
            run(root, dataset, paths, out, workers)
            rates[name].append(len(paths) / (time.perf_counter() - began_s))
            shutil.rmtree(out, ignore_errors=True)
    return rates


def text(measured: dict[str, dict[str, list[float]]]) -> str:
    """Return the medians as text, one block per set of images."""
    blocks = []
    for what, rates in measured.items():
        medians = {name: statistics.median(values) for name, values in rates.items()}
        rows = []
        for name, values in rates.items():
            span, ratio = f"{min(values):.1f} to {max(values):.1f}", f"{medians['sternum'] / medians[name]:.2f} x"
            rows.append([name, f"{medians[name]:.1f}", span, ratio])
        if "streaming" not in rates:
            rows.append(["streaming", "not installed (pip install mosaicml-streaming)"])
        blocks.append(f"{what}\n{table(['', 'images/s', 'range', 'sternum is'], rows)}")
    return "\n".join(blocks)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the images, measure, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--images", type=int, default=400, help="simulated radiographs")
    parser.add_argument("--size_px", type=int, default=1024, help="their shorter side")
    parser.add_argument("--root", type=Path, help="folder CLASS/IMAGE of more images, measured separately")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 for one per CPU")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sternum-packing-") as name:
        folder = Path(name)
        write_cell(folder / "cell", {"train": options.images}, seed=0, size_px=options.size_px)
        simulated = f"simulated, {options.images} images of {options.size_px} px"
        measured = {simulated: measure(folder / "cell", "cell", options.workers, options.repeats, folder)}
        if options.root is not None:
            measured[str(options.root)] = measure(options.root, "folder", options.workers, options.repeats, folder)
    result = {
        "unit": "images/s",
        "median": {what: {n: statistics.median(v) for n, v in rates.items()} for what, rates in measured.items()},
        "all": measured,
        "options": {"shorter_side_px": SHORTER_SIDE_PX, "jpeg_quality": JPEG_QUALITY, "shard_mb": SHARD_MB},
        "repeats": options.repeats,
        "workers": options.workers or len(os.sched_getaffinity(0)),
        "machine": machine("pillow", "webdataset", "mosaicml-streaming"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print(text(measured))


if __name__ == "__main__":
    main()
