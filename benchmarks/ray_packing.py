"""Packing on a Ray cluster of local nodes compared with as many processes of this machine: images/s of the same images.

Both take turns. At the end a cluster packs once more and loses a node in the middle; all shards must be equal.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.common import machine, table
from infra.storage.files import write_atomic
from tests.support.ray_cluster import LocalCluster, ray_cluster

DISTINCT: Final = 500  # images; the others are copies of these under other names
IN_A_FOLDER: Final = 1000
_RATE: Final = re.compile(r"(\d+) images in ([\d.]+) s")


def write_images(root: Path, images: int, size_px: int) -> None:
    """Write smooth gray JPEG files, all portrait."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(min(images, DISTINCT)):
        coarse = Image.fromarray(random.integers(0, 256, (12, 10), dtype=np.uint8))
        path = root / "image.jpg"
        coarse.resize((size_px, size_px * 6 // 5), Image.Resampling.BICUBIC).save(path, quality=90)
        contents.append(path.read_bytes())
        path.unlink()
    for number in range(images):
        folder = root / f"{number // IN_A_FOLDER:03d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(contents[number % len(contents)])


def start_packing(
    root: Path, out: Path, *options: str, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start `sternum shard`."""
    command = ["shard", "folder", f"--root={root}", f"--out={out}", "--shard_size_mb=16", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *command], stderr=subprocess.PIPE, text=True, env=environment
    )


def rate_of(packing: subprocess.Popen[str]) -> float:
    """Return the images/s of a packing, from its first image to its last, as it says."""
    _, said = packing.communicate()
    found = _RATE.search(said)
    assert packing.returncode == 0 and found is not None, said[-2000:]
    return int(found[1]) / float(found[2])


def kill_in_the_middle(cluster: LocalCluster, packing: subprocess.Popen[str], out: Path, shards: int) -> None:
    """Kill a node once a third of the shards are there."""
    while len(list(out.glob("*.tar"))) < shards // 3:
        assert packing.poll() is None, "packing ended before a node died"
        time.sleep(0.05)
    cluster.kill(1)


def content(folder: Path) -> dict[str, bytes]:
    """Return all files of a packed folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def measure(root: Path, folder: Path, nodes: int, repeats: int) -> dict[str, list[float]]:
    """Return the images/s of each repeat.

    Raises:
        AssertionError: if shards differ
    """
    rates: dict[str, list[float]] = {"processes": [], "cluster": [], "cluster that loses a node": []}
    here, there = folder / "here", folder / "there"
    with ray_cluster(nodes) as cluster:
        on_cluster = f"--address={cluster.address}"
        for _ in range(repeats):
            shutil.rmtree(here, ignore_errors=True)
            rates["processes"].append(rate_of(start_packing(root, here, f"--workers={nodes}")))
            packing = start_packing(root, there, on_cluster, environment=cluster.environment)
            rates["cluster"].append(rate_of(packing))
            assert content(there) == content(here), "the cluster wrote other bytes"
            shutil.rmtree(there)
        packing = start_packing(root, there, on_cluster, environment=cluster.environment)
        kill_in_the_middle(cluster, packing, there, len(list(here.glob("*.tar"))))
        rates["cluster that loses a node"].append(rate_of(packing))
        assert content(there) == content(here), "the cluster that lost a node wrote other bytes"
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the images, measure, and print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--size_px", type=int, default=64, help="their shorter side")
    parser.add_argument("--nodes", type=int, default=4, help="nodes of one core each; also the number of processes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--remark", default="", help="what else the machine did")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sternum-ray-packing-") as name:
        root = Path(name) / "images"
        root.mkdir()
        write_images(root, options.images, options.size_px)
        rates = measure(root, Path(name), options.nodes, options.repeats)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "unit": "images/s",
        "median": medians,
        "all": rates,
        "ratio": medians["cluster"] / medians["processes"],
        "bytes": "equal in every repeat and after the loss of a node",
        "options": {"images": options.images, "size_px": options.size_px, "nodes": options.nodes},
        "remark": options.remark,
        "machine": machine("pillow", "ray"),
    }
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    rows = [
        [
            name,
            f"{medians[name]:.0f}",
            f"{min(values):.0f} to {max(values):.0f}",
            f"{medians[name] / medians['processes']:.2f} x",
        ]
        for name, values in rates.items()
    ]
    print(table(["", "images/s", "range", "of the processes"], rows))


if __name__ == "__main__":
    main()
