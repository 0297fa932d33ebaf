import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sharding.packing.encoded
from infra.errors import UserError
from infra.storage.locks import locked
from sharding.packing.pack import PackConfig, pack
from sharding.packing.verify import verify
from sharding.reading.manifests import read_manifest

# Packs into a fresh folder again and again; the k-th time, the kernel kills it at its k-th step in the file system.
KILLED_AT_EVERY_STEP = """
import os, signal, sys
from pathlib import Path
from sharding.packing.pack import PackConfig, pack

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
root, out = Path(sys.argv[1]), Path(sys.argv[2])

def packed(folder, kill_at=None):
    step = 0
    def count(event, arguments):
        nonlocal step
        if event in STEPS and isinstance(arguments[0], (str, os.PathLike)) and str(folder) in os.fspath(arguments[0]):
            step += 1
            if step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
    if kill_at is not None:
        sys.addaudithook(count)
    pack(PackConfig("cell", root, folder, shorter_side_px=32, shard_samples=10, workers=1, allow_missing=True))

def in_child(*arguments):
    child = os.fork()
    if child == 0:
        packed(*arguments)
        os._exit(0)
    return os.waitpid(child, 0)[1]

for kill_at in range(1, 1000, int(sys.argv[3])):
    folder = out / str(kill_at)
    status = in_child(folder, kill_at)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    if kill_at % 3 == 1:
        in_child(folder, kill_at // 2)  # the second attempt is killed as well
    assert in_child(folder) == 0, kill_at
"""


@pytest.fixture
def config(cell_root: Path, tmp_path: Path) -> PackConfig:
    return PackConfig("cell", cell_root, tmp_path / "shards", shorter_side_px=32, shard_size_mb=0.06, workers=1)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packing fail behind this many images, as it does when a worker dies."""
    encode, left = sharding.packing.encoded._encode, iter(range(images))

    def stopping(row: bytes, **options: Any) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return encode(row, **options)

    monkeypatch.setattr(sharding.packing.encoded, "_encode", stopping)


@pytest.mark.parametrize("stride", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_pack_ends_with_the_same_bytes_when_it_is_killed_at_any_step(
    config: PackConfig, tmp_path: Path, stride: int
) -> None:
    for part in ("val", "test", "train/NORMAL"):
        shutil.rmtree(config.source / part)
    (config.source / "train" / "NORMAL").mkdir()
    pack(replace(config, shard_size_mb=256, shard_samples=10, allow_missing=True))
    undisturbed = content(Path(config.out))
    assert len(list(Path(config.out).glob("*.tar"))) == 3
    script = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(config.source), str(tmp_path / "killed"), str(stride)]
    subprocess.run(script, check=True, capture_output=True, timeout=240)
    folders = sorted((tmp_path / "killed").iterdir())
    assert len(folders) > 25 / stride
    for folder in folders:
        assert content(folder) == undisturbed, folder.name


def killed_at_random_moments(config: PackConfig, kills: int, seed: int) -> list[int]:
    """Pack by the command in real processes, killing each; return how many shards were finished each time."""
    command = [
        sys.executable,
        "-m",
        "launch",
        "shard",
        config.dataset,
        f"--root={config.source}",
        f"--out={config.out}",
    ]
    command += ["--shorter_side_px=32", "--shard_size_mb=0.06", "--workers=2"]
    moments = random.Random(seed)
    finished = []
    for _ in range(kills):
        had = len(list(Path(config.out).glob("*.tar")))
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            wanted = had + moments.randint(0, 2)  # the moment: so many shards, and a little more
            while process.poll() is None and len(list(Path(config.out).glob("*.tar"))) < wanted:
                time.sleep(0.001)
            time.sleep(moments.random() * 0.02)
            process.send_signal(signal.SIGKILL)
        finished.append(len(list(Path(config.out).glob("*.tar"))))
    subprocess.run(command, check=True, capture_output=True)
    return finished


@pytest.mark.parametrize(("kills", "seed"), [(2, 0), (10, 1)])
@pytest.mark.slow
def test_pack_ends_with_the_same_bytes_when_it_is_killed_at_random_moments(
    config: PackConfig, tmp_path: Path, kills: int, seed: int
) -> None:
    pack(replace(config, out=tmp_path / "undisturbed"))
    finished = killed_at_random_moments(config, kills, seed)
    assert finished == sorted(finished)
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")
    assert verify(Path(config.out), workers=1) == []


def test_pack_encodes_only_what_was_not_finished(
    config: PackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(40, patch)
        pack(config)
    tars = {path.name: path.stat().st_mtime_ns for path in Path(config.out).glob("*.tar")}
    assert len(tars) > 1
    assert not list(Path(config.out).rglob("writing"))
    pack(config)
    assert "of 60 images are packed already" in capsys.readouterr().err
    assert {name: (Path(config.out) / name).stat().st_mtime_ns for name in tars} == tars
    pack(replace(config, out=tmp_path / "undisturbed"))
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")


def test_pack_keeps_the_rejections_of_finished_shards(
    config: PackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image in sorted(config.source.rglob("*.jpeg"))[::3]:
        image.write_bytes(b"")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(55, patch)
        pack(config)
    manifest = pack(config)
    assert manifest.samples == 40
    assert [rejection.reason for rejection in manifest.rejected] == ["zero bytes"] * 20
    pack(replace(config, out=tmp_path / "undisturbed"))
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")


def test_pack_does_a_finished_shard_again_when_it_is_damaged(
    config: PackConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(50, patch)
        pack(config)
    tar = sorted(Path(config.out).glob("*.tar"))[-1]
    tar.write_bytes(bytes([tar.read_bytes()[0] ^ 1]) + tar.read_bytes()[1:])
    pack(config)
    pack(replace(config, out=tmp_path / "undisturbed"))
    assert content(Path(config.out)) == content(tmp_path / "undisturbed")


def test_unfinished_folder_is_refused_when_it_belongs_to_another_job_or_is_read(
    config: PackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(40, patch)
        pack(config)
    with pytest.raises(UserError, match="holds an unfinished packing of dataset 'cell' packed with seed=0, not 1"):
        pack(replace(config, seed=1))
    with pytest.raises(UserError, match=r"is not fully packed; run the same sternum shard command"):
        read_manifest(config.out)
    next(config.source.rglob("*.jpeg")).unlink()
    with pytest.raises(UserError, match="packed with other samples"):
        pack(config)


def test_pack_leaves_no_trace_when_it_stops_before_the_first_shard(
    config: PackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        pack(config)
    assert not Path(config.out).exists()


def test_second_pack_into_a_folder_is_refused_while_the_first_goes_on(config: PackConfig) -> None:
    with (
        locked(Path(config.out) / ".partial", "packing"),
        pytest.raises(UserError, match="is in use by another process that is packing"),
    ):
        pack(config)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_pack_keeps_what_is_finished_when_the_disk_is_full(config: PackConfig, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a file system here")
    try:
        on_disk = replace(config, out=disk)
        with pytest.raises(UserError, match="no space left on the device"):
            pack(on_disk)
        assert list(disk.glob("*.tar"))
        assert not list(disk.rglob("writing"))
        subprocess.run(["mount", "-o", "remount,size=2m", disk], check=True)
        pack(on_disk)
        pack(config)
        assert content(disk) == content(Path(config.out))
    finally:
        subprocess.run(["umount", disk], check=True)
