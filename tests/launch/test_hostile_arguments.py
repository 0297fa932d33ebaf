"""Tests that no argument ends in a traceback: each command gets folders and files that it cannot use."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from launch.cli import main

NOBODY = 54321  # no machine knows this user
SMALL = ("--data.lanes=1", "--data.global_batch=4")

# For each argument that names something to read, a command line; {path} is what cannot be used.
READING = {
    "shard --root": ["shard", "cell", "--root={path}", "--out=out"],
    "shard folder --root": ["shard", "folder", "--root={path}", "--out=out"],
    "shard dicom --root": ["shard", "dicom", "--root={path}", "--out=out"],
    "shard --folder.csv": ["shard", "folder", "--root=shards", "--folder.csv={path}", "--out=out"],
    "verify": ["verify", "{path}"],
    "audit": ["audit", "{path}"],
    "views": ["views", "{path}"],
    "pretrain --data.shards": ["pretrain", "run", "--data.shards=[{path}]"],
    "pretrain --config": ["pretrain", "run", "--config=./{path}", "--data.shards=[x]"],
    "probe": ["probe", "{path}", "--data.shards=[shards]", "--search=serial"],
    "table": ["table", "{path}"],
    "report": ["report", "{path}"],
    "export": ["export", "{path}", "--out=out", "--onnx=false"],
}
# For each argument that names something to write, a command line.
WRITING = {
    "shard --out": ["shard", "folder", "--root=images", "--out={path}", "--workers=1"],
    "views --out": ["views", "shards", "--out={path}/x.png", "--count=1"],
    "audit --out": ["audit", "shards", "--out={path}", "--workers=1"],
    "pretrain": ["pretrain", "{path}", "--data.shards=[shards]", *SMALL],
    "demo --out": ["demo", "--out={path}"],
}


class Outcome(NamedTuple):
    """What a command printed on standard error, and its exit code; None if an exception ended it."""

    code: int | None
    error: str


def outcome(words: Sequence[str]) -> Outcome:
    """Call a command in this process."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: int | None = main(words)
        except BaseException:  # whatever it is, the test shows it
            traceback.print_exc()
            code = None
    return Outcome(code, error.getvalue())


def outcomes_as_nobody(lines: Sequence[Sequence[str]], root: Path = Path("/")) -> list[Outcome]:
    """Call commands as a user without rights, to whom `root` is the whole disk.

    Only root can become that user. Others are one already.
    """
    if os.getuid() != 0:
        return [outcome(words) for words in lines]
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            os.chroot(root)
            os.chdir("/" if root != Path("/") else Path.cwd())
            tempfile.tempdir = None  # look for it again
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            json.dump([outcome(words) for words in lines], file)
            file.flush()
            os._exit(0)
        os.waitpid(child, 0)
        file.seek(0)
        return [Outcome(*values) for values in json.load(file)]


@pytest.fixture
def folder(simulated_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder that everyone can read and nobody can write, with shards, images and things to trip over."""
    path = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(simulated_shards, path / "shards")
        shutil.copytree(simulated_shards.parent / "raw", path / "images")
        (path / "file").write_text("text")
        (path / "empty").mkdir()
        (path / "dangling").symlink_to("nowhere")
        (path / "loop").symlink_to("loop")
        (path / "secret").write_text("text")
        (path / "locked").mkdir()
        path.chmod(0o755)
        for name in ("secret", "locked"):
            (path / name).chmod(0)
        monkeypatch.chdir(path)
        yield path
    finally:
        (path / "locked").chmod(0o700)
        shutil.rmtree(path)


def filled(words: Sequence[str], path: str) -> list[str]:
    return [word.format(path=path) for word in words]


def require_one_line(words: Sequence[str], got: Outcome) -> None:
    lines = [line for line in got.error.splitlines() if line.startswith("sternum: error")]
    assert got.code in (1, 2), (words, got)
    assert len(lines) == 1, (words, got.error)
    assert "Traceback" not in got.error, (words, got.error)


@pytest.mark.parametrize("argument", READING)
def test_what_cannot_be_read_is_one_line(argument: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for path in ("nowhere", "file", "file/x", "empty", "dangling", "loop", "x" * 300, "caf\udce9", "-", "a\nb"):
        words = filled(READING[argument], path)
        require_one_line(words, outcome(words))
    assert sorted(folder.rglob("*")) == before
    lines = [filled(READING[argument], path) for path in ("secret", "locked", "locked/x")]
    for words, got in zip(lines, outcomes_as_nobody(lines), strict=True):
        require_one_line(words, got)


@pytest.mark.parametrize("argument", WRITING)
def test_what_cannot_be_written_is_one_line(argument: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    for path in ("file", "file/x", "loop", "x" * 300):
        words = filled(WRITING[argument], path)
        require_one_line(words, outcome(words))
    assert sorted(folder.rglob("*")) == before
    lines = [filled(WRITING[argument], path) for path in ("new", "locked", "locked/x")]
    for words, got in zip(lines, outcomes_as_nobody(lines), strict=True):
        require_one_line(words, got)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its root folder")
def test_a_container_without_home_users_and_writable_folders_gets_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "TMPDIR", "TMP", "TEMP", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    remote = ["pretrain", "/run", "--data.shards=[http://127.0.0.1:9/x]"]
    expected = {
        ("shard", "folder", "--root=/images", "--out=/out", "--workers=1"): "set TMPDIR to a folder that you may write",
        ("supervise", "/run", "--", "true"): "set TMPDIR to a folder that you may write to",
        tuple(remote): "data.fetch.cache_folder=~/.cache/sternum is in a home folder that this machine does not know",
        (*remote, "--data.fetch.cache_folder=~/x"): "data.fetch.cache_folder=~/x is in a home folder that this machine",
        ("pretrain", "/run", "--data.shards=[/shards]", *SMALL): "cannot write /run: permission denied",
        ("shard", "folder", "--root=/images", "--out=ftp://host/x"): "out=ftp://host/x must begin with",
    }
    for words in expected:  # imports what the commands need, which is not below the new root
        outcome([*words, "--print_config"] if words[0] != "supervise" else ["supervise", "--help"])
    for (words, message), got in zip(
        expected.items(), outcomes_as_nobody([list(words) for words in expected], root=folder), strict=True
    ):
        require_one_line(words, got)
        assert message in got.error
