"""Commands on a Ray cluster write what they write on one machine, also if a node dies in the middle."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from launch.cli import main as sternum
from sharding.packing.verify import verify
from sharding.simulation.datasets import write_cell
from tests.support.ray_cluster import LocalCluster, ray_cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

IMAGES = 400
PACKED = ["--shorter_side_px=64", "--shard_samples=50", "--allow_missing=true"]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated radiographs, one of them damaged, one empty, and one a copy of another."""
    root = tmp_path_factory.mktemp("raw") / "cell"
    write_cell(root, {"train": IMAGES}, seed=0, size_px=96)
    damaged, empty, original, copy, *_ = sorted((root / "train" / "NORMAL").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:300])
    empty.write_bytes(b"")
    shutil.copy(original, copy)
    return root


@pytest.fixture(scope="module")
def packed(raw: Path) -> Path:
    """The radiographs, packed by processes of this machine."""
    out = raw.parent / "here"
    assert sternum(["shard", "cell", f"--root={raw}", f"--out={out}", *PACKED]) == 0
    return out


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with ray_cluster(nodes=3) as started:  # and the head
        yield started


def start(cluster: LocalCluster, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "launch", *arguments, f"--address={cluster.address}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=cluster.environment, **options)  # type: ignore[call-overload]


def errors_of(process: "subprocess.Popen[str]", code: int) -> str:
    _, errors = process.communicate()
    assert process.returncode == code, errors[-2000:]
    return str(errors)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_shards_of_a_cluster_that_loses_a_node_are_those_of_one_machine(
    cluster: LocalCluster, raw: Path, packed: Path, tmp_path: Path
) -> None:
    """The first command is killed and so is a node, a second one goes on, and a second node dies."""
    out = tmp_path / "there"
    for node in (1, 2):
        process = start(cluster, "shard", "cell", f"--root={raw}", f"--out={out}", *PACKED)
        finished = len(list(out.glob("*.tar")))
        while len(list(out.glob("*.tar"))) <= finished:
            assert process.poll() is None
            time.sleep(0.05)
        cluster.kill(node)
        if node == 1:
            process.kill()
            process.communicate()
        else:
            assert "packed already; continuing with the rest" in errors_of(process, 0)
    assert content(out) == content(packed)
    assert verify(out) == []


def test_audit_finds_the_same(cluster: LocalCluster, packed: Path, tmp_path: Path) -> None:
    """Shards of an older version have no fingerprints, so that their images are read."""
    older = tmp_path / "older"
    shutil.copytree(packed, older, ignore=shutil.ignore_patterns("*.fingerprints.npy"))
    manifest = json.loads((older / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["fingerprints_sha256"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    here = sternum(["audit", str(older), f"--out={tmp_path / 'here'}"])
    errors_of(start(cluster, "audit", older.name, f"--out={tmp_path / 'there'}", cwd=tmp_path), here)
    names = ["audit.json", "audit.html"]
    ours, theirs = ([(tmp_path / where / name).read_text() for name in names] for where in ("here", "there"))
    assert [text.replace(str(older), older.name) for text in ours] == theirs
    assert '"identical":[{' in "".join(ours[0].split())


def test_features_of_shards_and_files_are_the_same(
    cluster: LocalCluster, raw: Path, packed: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    options = [f"--backbone={tmp_path}/weights.pth@resnet18", "--input.size_px=32", "--executor=torchvision"]
    for source, refused in ((packed, 0), (raw / "train" / "NORMAL", 1)):
        here, there = (tmp_path / f"{where}-{refused}.npz" for where in ("here", "there"))
        embed = ["embed", str(source), *options, "--local_batch=8"]
        assert sternum([*embed, f"--out={here}"]) == refused
        errors_of(start(cluster, *embed, f"--out={there}"), refused)
        with np.load(here) as ours, np.load(there) as theirs:
            assert ours["features"].shape[1] == 512
            assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours.files)
        if refused:
            lists = [path.with_suffix(".refused.csv").read_text() for path in (here, there)]
            assert lists[0] == lists[1]
            assert "zero bytes" in lists[0]


def test_a_node_that_cannot_see_the_images_ends_packing_in_one_line(raw: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("hiding a folder needs root")
    hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {raw} && exec "$@"', "sh"]
    with ray_cluster(nodes=1, unshare=hide) as blind:
        process = start(blind, "shard", "cell", f"--root={raw}", f"--out={tmp_path / 'out'}", *PACKED)
        [line] = [line for line in errors_of(process, 1).splitlines() if line.startswith("sternum: error")]
    assert line.endswith(
        "node 127.0.0.1 of the Ray cluster cannot read it, but this machine can; mount the disk under the same path on "
        "every node"
    )
    assert str(raw) in line
    assert not (tmp_path / "out").exists()
