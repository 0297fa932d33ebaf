"""Folders in object stores: S3, Google Cloud Storage, or a local folder named by a `file://` URL.

The only module that uses fsspec. fsspec is imported when a store is opened, because that takes a while.
"""

import asyncio
import errno
import glob
import re
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from infra.errors import RunFailed, UserError, require
from infra.extras import Extra, require_extra
from infra.storage.files import SMALL_BYTES
from infra.urls import require_no_credentials, scheme_of, scrub, shown

# Each scheme with the extra that installs its client. The tests add `memory`.
SCHEMES: Final[dict[str, Extra | None]] = {"s3": "s3", "gs": "gcs", "file": None}

NOT_FOUND: Final = "not found"

_DISK_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class StoreFailed(RunFailed):
    """A request to an object store failed.

    Attributes:
        reason: the cause in one line, without the URL
        is_final: whether repeating the request is useless
    """

    def __init__(self, message: str, reason: str = "", *, is_final: bool = False) -> None:
        super().__init__(message)  # other ranks raise the error again with its message alone
        self.reason, self.is_final = reason, is_final


class ObjectStore:
    """A folder of an object store; safe to use from several threads.

    Files are named by their path below the folder, such as `step-3/manifest.json`. Listings are never cached, because
    other processes write to the store too. Every failure of the client is a StoreFailed.

    Attributes:
        name: the URL for messages, after the option that holds it: `checkpoints.mirror=s3://bucket/run`
    """

    def __init__(
        self, url: str, option: str = "", *, retries: bool = True, hint: str = "check the address and the credentials"
    ) -> None:
        """Open the store.

        Args:
            url: the folder, with one of the `SCHEMES`
            option: the option that holds the URL, for messages
            retries: whether the client repeats a failed request itself
            hint: advice at the end of the message if a request fails

        Raises:
            UserError: if the URL has another scheme, holds credentials or names no folder, or the client is missing
        """
        scheme = require_store_url(url, option)
        self.name, self._hint = f"{f'{option}=' * bool(option)}{shown(url)}", hint
        extra = SCHEMES[scheme]
        if extra is not None:
            require_extra(extra, self.name)
        local = str(file_path(url)) if scheme == "file" else None
        try:
            self._client = _client(scheme, retries=retries)
            path: str = local or self._client._strip_protocol(f"{scheme}{url[len(scheme) :]}")
        except Exception as error:
            raise UserError(f"{self.name} cannot be opened: {one_line(error)}; {hint}") from error
        self._path = path.rstrip("/")
        bucket = self._path.partition("/")[0]
        require(
            extra is None or (bool(bucket) and ":" not in bucket),
            f"{self.name} names no bucket; write {scheme}://BUCKET/FOLDER",
        )

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the size in bytes of each file and folder directly in `folder`, 0 for a folder; {} if it is absent."""
        entries = self._entries(folder).items()
        return {name: entry["size"] if entry["type"] == "file" else 0 for name, entry in entries}

    def folders(self) -> list[str]:
        """Return the names of the folders directly in this one."""
        return [name for name, entry in self._entries("").items() if entry["type"] == "directory"]

    def exists(self, name: str) -> bool:
        """Return whether a file or a folder of this name exists."""
        with self._errors("read"):
            return bool(self._client.exists(self._full(name)))

    def read(self, name: str) -> bytes | None:
        """Return the content of a file of at most SMALL_BYTES, None if it does not exist."""
        with self._errors("read"):
            try:
                size_bytes = self._client.info(self._full(name))["size"]
                if size_bytes > SMALL_BYTES:
                    raise ValueError(f"{name} has {size_bytes} bytes, more than {SMALL_BYTES >> 20} MiB")
                return bytes(self._client.cat_file(self._full(name)))
            except FileNotFoundError:
                return None

    def get(self, name: str, file: Path) -> None:
        """Copy a file to the local disk; a full disk raises its own OSError."""
        with self._errors("read"):
            self._client.get_file(self._full(name), str(file))

    def put(self, file: Path, name: str) -> None:
        """Copy a local file into the store."""
        with self._errors("written"):
            self._make_parent(name)
            self._client.put_file(str(file), self._full(name))

    def put_bytes(self, content: bytes, name: str) -> None:
        """Write a file."""
        with self._errors("written"):
            self._make_parent(name)
            self._client.pipe_file(self._full(name), content)

    def create(self, content: bytes, name: str) -> None:
        """Write a file that does not exist; an existing one stays as it is.

        Of several processes that do so at the same moment, one succeeds if the store knows conditional writes, as S3,
        Google and local disks do; else the last. Read the file to see who it was.
        """
        with self._errors("written"):
            self._make_parent(name)
        with suppress(Exception), self._client.open(self._full(name), "xb") as file:
            file.write(content)  # it exists, or the store or its client cannot do this: the next lines find out
        if not self.exists(name):
            self.put_bytes(content, name)

    def remove(self, name: str = "") -> None:
        """Remove a file, or a folder with its content, if it exists."""
        full = self._full(name)
        with self._errors("cleaned up"):
            if not self.exists(name):
                return
            if glob.escape(full) != full and not getattr(self._client, "local_file", False):
                for file in self._client.find(full):  # `rm` would take the path for a pattern, and remove other folders
                    self._client.rm_file(file)
            else:
                self._client.rm(full, recursive=True)

    def size(self, name: str, timeout_s: float) -> int:
        """Return the size of a file in bytes.

        Raises:
            StoreFailed: if it is not a file, or no answer arrives within `timeout_s` seconds
        """
        info = self._within(timeout_s, "info", self._full(name))
        if info["type"] != "file":
            raise self._failed("read", NOT_FOUND, is_final=True)
        return int(info["size"])

    def read_range(self, name: str, start: int, end: int, timeout_s: float) -> bytes:
        """Return the bytes `start` to `end` of a file, `end` excluded.

        Raises:
            StoreFailed: if they cannot be read, or do not arrive within `timeout_s` seconds
        """
        return bytes(self._within(timeout_s, "cat_file", self._full(name), start=start, end=end))

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}" if name else self._path

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return the client's entry for each file and folder directly in `folder`."""
        full = self._full(folder)
        with self._errors("listed"):
            try:
                entries = {entry["name"].strip("/"): entry for entry in self._client.ls(full, detail=True)}
            except FileNotFoundError:
                return {}
        entries.pop(full.strip("/"), None)  # an empty object that marks the folder, or a file of that name
        return {name.rpartition("/")[2]: entry for name, entry in entries.items()}

    def _make_parent(self, name: str) -> None:
        self._client.makedirs(self._full(name).rpartition("/")[0], exist_ok=True)

    def _within(self, timeout_s: float, method: str, path: str, **arguments: int) -> Any:
        """Call the client; if it is asynchronous, as for S3 and Google, wait at most `timeout_s` seconds."""
        with self._errors("read", timeout_s):
            if not self._client.async_impl:
                return getattr(self._client, method)(path, **arguments)
            answer = getattr(self._client, f"_{method}")(path, **arguments)
            pending = asyncio.run_coroutine_threadsafe(answer, self._client.loop)
            try:
                return pending.result(timeout_s)
            finally:
                pending.cancel()

    @contextmanager
    def _errors(self, action: str, timeout_s: float = 0.0) -> Iterator[None]:
        """Turn any error of a client into StoreFailed."""
        try:
            yield
        except (TimeoutError, CancelledError) as error:
            reason = f"no answer within {timeout_s:g} s" if timeout_s else one_line(error)
            raise self._failed(action, reason, is_final=False) from error
        except FileNotFoundError as error:
            raise self._failed(action, NOT_FOUND if action == "read" else one_line(error), is_final=True) from error
        except PermissionError as error:
            raise self._failed(action, f"no permission ({one_line(error)})", is_final=True) from error
        except Exception as error:
            if action == "read" and isinstance(error, OSError) and error.errno in _DISK_FULL:
                raise
            # botocore's and google-auth's errors have "Credential" in their names; either package may be absent.
            is_final = "Credential" in type(error).__name__
            raise self._failed(action, one_line(error), is_final=is_final) from error

    def _failed(self, action: str, reason: str, *, is_final: bool) -> StoreFailed:
        return StoreFailed(f"{self.name} cannot be {action}: {reason}; {self._hint}", reason, is_final=is_final)


def require_store_url(url: str, option: str = "") -> str:
    """Return the scheme of an object store's URL, in lower case.

    Raises:
        UserError: if it is a path, has a scheme that is not in `SCHEMES`, or holds credentials
    """
    require_no_credentials(url, option)
    scheme = scheme_of(url)
    public = [f"{scheme}://" for scheme in SCHEMES if scheme != "memory"]
    require(
        scheme in SCHEMES and url[len(scheme or "") :].startswith("://"),
        f"{f'{option}=' * bool(option)}{shown(url)} must begin with {', '.join(public[:-1])} or {public[-1]}",
    )
    assert scheme is not None
    return scheme


def file_path(url: str) -> Path:
    """Return the local path that a `file://` URL names.

    Raises:
        UserError: if it names another machine or no folder
    """
    parts = urlsplit(url)
    require(
        parts.netloc in ("", "localhost") and url.lower().startswith("file://"),
        f"{shown(url)} is not on this machine; write file:///FOLDER, with three slashes",
    )
    return Path(unquote(parts.path))


def one_line(error: BaseException) -> str:
    """Return the type and the text of an error in one short line, without secrets in URLs."""
    text = scrub(re.sub(r"\s+", " ", str(error)).strip())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _client(scheme: str, *, retries: bool) -> Any:
    """Return an fsspec client that is not shared and caches no listings."""
    import fsspec  # noqa: PLC0415

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3" and not retries:
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {**configured, "retries": {"total_max_attempts": 1}}
    client = fsspec.filesystem(scheme, **options)
    if not retries:
        client.retries = 1
    return client
