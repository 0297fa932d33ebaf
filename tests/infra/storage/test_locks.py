"""Tests of the locks of folders, with real processes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import RunFailed, UserError
from infra.storage.locks import StillHeld, is_locked, locked, waiting_lock


def test_a_second_process_is_refused_and_a_killed_one_frees_the_folder(tmp_path: Path) -> None:
    assert not is_locked(tmp_path)
    program = (
        "import sys, time; from pathlib import Path; from infra.storage.locks import locked\n"
        "with locked(Path(sys.argv[1]), 'pretraining'):\n    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path)
        with pytest.raises(UserError, match="in use by another process"), locked(tmp_path, "pretraining"):
            pass
        holder.kill()
        holder.wait()
    assert not is_locked(tmp_path)
    with locked(tmp_path, "pretraining"):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_a_holder_notices_that_its_folder_was_removed_or_replaced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with locked(run, "pretraining") as lock:
        lock.require_held()
        shutil.rmtree(run)
        with pytest.raises(RunFailed, match="run was removed or replaced while this process was using it"):
            lock.require_held()
        with locked(run, "pretraining") as second:  # nothing is left that could keep it out
            second.require_held()
            with pytest.raises(RunFailed, match="was removed or replaced"):
                lock.require_held()


def test_a_waiting_lock_waits_until_the_other_one_ends(tmp_path: Path) -> None:
    with waiting_lock(tmp_path / ".lock", 10), pytest.raises(StillHeld), waiting_lock(tmp_path / ".lock", 0.1):
        pass
    with waiting_lock(tmp_path / ".lock", 10):
        assert is_locked(tmp_path)


WITHOUT_FLOCK = """
import errno, fcntl, sys
from pathlib import Path
def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
from infra.errors import UserError
from infra.storage.files import write_atomic
from infra.storage.locks import locked
try:
    with locked(Path(sys.argv[1]), "pretraining"):
        sys.exit("got a lock")
except UserError as error:
    print(error)
write_atomic(Path(sys.argv[1]) / "file", "content")
"""


def test_a_disk_without_locks_is_refused_in_one_line(tmp_path: Path) -> None:
    """A marker file in place of a lock would keep the folder locked after its process was killed."""
    run = tmp_path / "run"
    program = [sys.executable, "-W", "error", "-c", WITHOUT_FLOCK, str(run)]
    for _ in range(2):
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert done.stdout == (
            f"the disk of {run} cannot lock files: Function not implemented; choose a folder on another disk\n"
        )
        assert done.stderr == ""
    assert (run / "file").read_text() == "content"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a symbolic link stands where a file is needed"), locked(tmp_path, "probing"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_pipe_in_place_of_the_lock_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    assert is_locked(tmp_path)
