"""Folders and object stores that a run writes to. Nothing stays behind in them."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

from infra.doctor.finding import Finding, finding_of
from infra.doctor.resources import megabytes
from infra.errors import RunFailed, UserError
from infra.storage.files import disk_errors, write_atomic
from infra.storage.locks import try_lock
from infra.storage.object_store import ObjectStore
from infra.urls import shown

_CONTENT = b"sternum doctor\n"


def check_folder(folder: Path) -> Iterator[Finding]:
    """Write and lock a file in a folder, or in the nearest one above it that exists."""
    present = existing(folder)
    probe = present / probe_name()
    try:
        with disk_errors(probe):
            write_atomic(probe, _CONTENT)
            try:
                _require_locks(probe, folder)
            finally:
                probe.unlink()
    except (UserError, RunFailed) as error:
        yield finding_of("folders", error)
        return
    free = megabytes(shutil.disk_usage(present).free)
    where = "" if present == folder else f" (not there yet; tried in {present})"
    yield Finding("folders", f"{folder}{where} can be written and locked, {free} free")


def check_store(url: str) -> Iterator[Finding]:
    """Write a file to an object store, read it, and remove it."""
    name = probe_name()
    try:
        store = ObjectStore(url, retries=False)
        store.put_bytes(_CONTENT, name)
        content = store.read(name)
        store.remove(name)
    except (UserError, RunFailed) as error:
        yield finding_of("object stores", error)
        return
    if content != _CONTENT:
        yield Finding("object stores", f"{shown(url)} did not return what was written", "use another store")
    else:
        yield Finding("object stores", f"{shown(url)} can be written and read")


def probe_name() -> str:
    """Return a name that no other file has."""
    return f".sternum-doctor-{token_hex(8)}"


def existing(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _require_locks(probe: Path, folder: Path) -> None:
    """Lock a file twice; the second time must fail.

    Raises:
        UserError: if the file system does not lock files, or lets two lock the same one
    """
    descriptors = [os.open(probe, os.O_RDWR) for _ in range(2)]
    try:
        first, second = (try_lock(descriptor, fcntl.LOCK_EX, folder) for descriptor in descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    if not first or second:
        raise UserError(f"the disk of {folder} does not keep its locks; choose a folder on another disk")
