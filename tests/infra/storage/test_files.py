"""Tests of atomic writes, checksums and the errors of the disk."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.errors import RunFailed, UserError
from infra.storage.files import (
    SMALL_BYTES,
    atomic_folder,
    disk_errors,
    make_private_folder,
    read_small,
    remove_folder,
    remove_remains,
    require_space,
    sha256_file,
    write_atomic,
)


def test_write_atomic_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "first, and longer")
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_keeps_the_old_content_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")
    program = (
        "import resource, signal, sys; from pathlib import Path; from infra.storage.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomic(Path(sys.argv[1]), 'x' * 5000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr or "no space left" in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_that_names_the_path() -> None:
    full = Path("/dev/full")  # the kernel answers every write with ENOSPC
    message = r"cannot write /dev/full: no space left .*choose another folder"
    with pytest.raises(UserError, match=message), disk_errors(full), full.open("wb", buffering=0) as file:
        file.write(b"x")


def test_atomic_folder_appears_only_if_the_block_succeeds(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(RuntimeError, match="stop"), atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with atomic_folder(target) as folder:
        (folder / "b").write_text("2")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["target", "target/b"]


def test_a_broken_disk_is_a_failure_and_not_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the disk failed"), disk_errors(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(BrokenPipeError), disk_errors(tmp_path):
        raise BrokenPipeError


def test_space_is_required_on_the_disk_of_the_path(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(UserError, match=r"not/there/yet: it needs [\d,]+\.0 MB, but [\d,]+\.\d MB are free; free some"):
        require_space(tmp_path / "not" / "there" / "yet", 10**18)


def test_remove_folder_removes_only_a_link_and_remains_are_removed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "gone").mkdir()
    (tmp_path / ".gone.removed-1").mkdir()
    (tmp_path / ".new.partial-1").mkdir()
    (tmp_path / ".new.txt.partial-2").write_text("half")
    remove_folder(tmp_path / "gone")
    remove_folder(tmp_path / "link")
    remove_remains(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "a").read_text() == "1"


def test_sha256_file_equals_hashlib(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_private_folder_is_made_and_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        make_private_folder(tmp_path / "mine", "try another")
        assert (tmp_path / "mine").stat().st_mode & 0o7777 == 0o700


def open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def linked(path: Path) -> None:
    (path.parent / "target").mkdir(mode=0o700)
    path.symlink_to("target")


def of_another_user(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    path.mkdir(mode=0o700)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("prepare", [open_to_others, linked, of_another_user, Path.touch])
def test_folder_that_others_may_reach_into_is_refused(tmp_path: Path, prepare: Callable[[Path], None]) -> None:
    prepare(tmp_path / "mine")
    with pytest.raises(
        UserError, match=rf"^{tmp_path}/mine must be a folder that belongs to you alone, .*; try another$"
    ):
        make_private_folder(tmp_path / "mine", "try another")


def test_read_small_refuses_large_and_odd_files(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"content")
    assert read_small(tmp_path / "small") == b"content"
    with (tmp_path / "large").open("wb") as file:
        file.truncate(SMALL_BYTES + 1)
    with pytest.raises(UserError, match=r"/large has 268 MB, and at most 256 MiB of such a file are read; "):
        read_small(tmp_path / "large")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match="is not a regular file"):
            read_small(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none")


WRITER = """
import sys
from pathlib import Path
from infra.storage.files import write_atomic
write_atomic(Path(sys.argv[1]), bytes(300_000_000))
"""


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*.partial-*") if path.stat().st_size]


def test_the_next_write_removes_what_a_killed_one_left_but_nothing_of_a_living_one(tmp_path: Path) -> None:
    path = tmp_path / "features[1].safetensors"
    (tmp_path / ".features1.safetensors.partial-7").write_text("of another file")
    with subprocess.Popen([sys.executable, "-c", WRITER, path]) as living:
        while not (partials := unfinished(tmp_path))[1:]:
            time.sleep(0.001)
        living.send_signal(signal.SIGSTOP)
        write_atomic(path, "the second write")
        assert unfinished(tmp_path) == partials
        living.kill()
        living.wait()
    assert path.read_text() == "the second write"
    write_atomic(path, "the third write")
    assert [file.name for file in unfinished(tmp_path)] == [".features1.safetensors.partial-7"]
    assert path.read_text() == "the third write"
