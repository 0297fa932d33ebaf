"""Where packed shards are read from: a local folder, a web server or an object store."""

import re
import threading
from collections.abc import Generator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import IncompleteRead
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from infra.errors import require
from infra.object_store import NOT_FOUND, SCHEMES, ObjectStore, StoreFailed, file_path
from infra.urls import Location, require_no_credentials, scheme_of, shown

__all__ = ["FetchFailed", "LocalFolder", "Location", "RemoteBody", "RemoteFolder", "ShardFolder", "StoreFolder"]
__all__ += ["WebFolder", "open_location"]

_CHUNK_BYTES: Final = 1 << 20
_RANGE_BYTES: Final = 4 << 20  # read from an object store at a time; all of it must arrive within `timeout_s`
_TEMPORARY: Final = (408, 416, 425, 429)  # statuses below 500 after which a repeated request may succeed


class FetchFailed(Exception):
    """A file could not be read to its end.

    Attributes:
        reason: the cause, without anything secret
        is_final: whether repeating the request is useless
        from_zero: whether the next attempt must start from the first byte again
        wait_s: how many seconds the server asks to wait
    """

    def __init__(
        self, reason: str, *, is_final: bool = False, from_zero: bool = False, wait_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.is_final, self.from_zero, self.wait_s = reason, is_final, from_zero, wait_s


class RemoteBody(NamedTuple):
    """The content of a file as it arrives.

    Attributes:
        start: position of the first byte in the file; 0 if a server ignores the requested start
        chunks: the bytes; iterating may raise FetchFailed; close it when done
    """

    start: int
    chunks: Generator[bytes, None, None]


class LocalFolder:
    """A local folder, read in place.

    Attributes:
        name: the path for messages
        path: the folder
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)


class WebFolder:
    """A folder of a web server; safe to use from several threads.

    Credentials come from ~/.netrc, proxies and certificates from the environment.

    Attributes:
        name: the URL for messages
    """

    def __init__(self, url: str) -> None:
        require_no_credentials(url)
        self.name = shown(url)
        try:
            parts = urlsplit(url)
            is_whole = bool(parts.hostname) and parts.port != 0
        except ValueError:  # an invalid port or IPv6 address
            is_whole = False
        require(is_whole, f"{self.name} names no server; write http://SERVER/FOLDER")
        self._url = parts
        self._local = threading.local()

    def open(self, file: str, start: int, timeout_s: float) -> RemoteBody:
        """Begin to read a file.

        Args:
            file: its name
            start: position of the first byte to read
            timeout_s: the longest wait for the next byte, in seconds

        Raises:
            FetchFailed: if the server does not send it
        """
        url = self._url._replace(path=f"{self._url.path.rstrip('/')}/{file}").geturl()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with _web_errors(timeout_s):
            response = self._session().get(url, headers=headers, stream=True, timeout=timeout_s)
        try:
            begin = _first_byte(response, start)
        except FetchFailed:
            response.close()
            raise
        return RemoteBody(begin, _chunks(response, timeout_s))

    def _session(self) -> requests.Session:
        """Return this thread's connections."""
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        session: requests.Session = self._local.session
        return session


class StoreFolder:
    """A folder of an object store; safe to use from several threads.

    Attributes:
        name: the URL for messages
    """

    def __init__(self, url: str) -> None:
        # The client does not repeat requests: `Fetcher` does, by one rule for web servers and object stores.
        self._store = ObjectStore(url, retries=False)
        self.name = self._store.name

    def open(self, file: str, start: int, timeout_s: float) -> RemoteBody:
        """Begin to read a file.

        Args:
            file: its name
            start: position of the first byte to read
            timeout_s: the longest wait for the next 4 MiB, in seconds

        Raises:
            FetchFailed: if the store does not have the file, or not that many bytes of it
        """
        with _store_errors():
            size_bytes = self._store.size(file, timeout_s)
        if start > size_bytes:
            raise FetchFailed(f"it has only {size_bytes} bytes", from_zero=True)
        return RemoteBody(start, self._ranges(file, start, size_bytes, timeout_s))

    def _ranges(self, file: str, start: int, size_bytes: int, timeout_s: float) -> Generator[bytes, None, None]:
        for begin in range(start, size_bytes, _RANGE_BYTES):
            end = min(begin + _RANGE_BYTES, size_bytes)
            with _store_errors():
                content = self._store.read_range(file, begin, end, timeout_s)
            if len(content) != end - begin:
                raise FetchFailed(f"{len(content)} bytes arrived instead of {end - begin}")
            yield content


RemoteFolder = WebFolder | StoreFolder
ShardFolder = LocalFolder | RemoteFolder


def open_location(location: Location) -> ShardFolder:
    """Open a folder of shards: a path, or a URL of file, http, https, s3 or gs.

    Raises:
        UserError: if the URL has another scheme (a `pipe:`, for example, would run a command), is malformed or holds
            credentials, or if the client of its object store is not installed
    """
    scheme = scheme_of(location)
    if scheme is None or not isinstance(location, str):
        return LocalFolder(Path(location))
    known = ["http", "https", *SCHEMES]
    require(
        scheme in known,
        f"{scheme}: is not a scheme for shards; use one of {', '.join(known)}, or write ./{scheme}:... "
        "if that is the name of a folder",
    )
    rest = location[len(scheme) + 1 :]
    require(rest.startswith("//"), f"{shown(location)} is not a URL; write {scheme}://... with two slashes")
    if scheme == "file":
        require_no_credentials(location)
        return LocalFolder(file_path(location))
    return WebFolder(location) if scheme in ("http", "https") else StoreFolder(location)


@contextmanager
def _store_errors() -> Generator[None, None, None]:
    """Turn StoreFailed into FetchFailed."""
    try:
        yield
    except StoreFailed as error:
        hint = "; check the credentials" if error.is_final and error.reason != NOT_FOUND else ""
        raise FetchFailed(f"{error.reason}{hint}", is_final=error.is_final) from error


def _first_byte(response: requests.Response, start: int) -> int:
    """Return the position of an answer's first byte; raise FetchFailed unless the status is a success."""
    status = response.status_code
    if status == HTTPStatus.OK:
        return 0
    if status == HTTPStatus.PARTIAL_CONTENT:
        begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if begin is None or int(begin[1]) != start:
            raise FetchFailed(f"the server sent a range that does not start at byte {start}", from_zero=True)
        return start
    phrase = next((known.phrase for known in HTTPStatus if known == status), "unknown status")
    login = "; check the credentials (~/.netrc)" if status in (401, 403, 407) else ""
    raise FetchFailed(
        f"{status} {phrase}{login}",
        is_final=status < 500 and status not in _TEMPORARY,
        from_zero=status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        wait_s=_retry_after_s(response.headers.get("Retry-After", "")),
    )


def _retry_after_s(value: str) -> float | None:
    """Return how many seconds a Retry-After header, a number or a date, asks to wait (RFC 9110, 10.2.3)."""
    if value.strip().isdecimal():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _chunks(response: requests.Response, timeout_s: float) -> Generator[bytes, None, None]:
    """Yield a body as it arrives, so that an interruption loses none of it."""
    with closing(response), _web_errors(timeout_s):
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
            yield chunk


@contextmanager
def _web_errors(timeout_s: float) -> Generator[None, None, None]:
    """Turn errors of requests and urllib3 into FetchFailed; their own messages would show redirected URLs in full."""
    try:
        yield
    except requests.Timeout as error:
        raise FetchFailed(f"no byte arrived within {timeout_s:g} s") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        innermost = _innermost(error)
        if isinstance(innermost, TimeoutError):
            raise FetchFailed(f"no byte arrived within {timeout_s:g} s") from error
        broken_off = isinstance(innermost, IncompleteRead | urllib3.exceptions.IncompleteRead)
        reason = (
            "the response broke off" if broken_off else getattr(innermost, "strerror", "") or type(innermost).__name__
        )
        # A rejected certificate and an endless or unusable redirection would fail in the same way again.
        is_final = isinstance(error, requests.TooManyRedirects | ValueError) or "CERTIFICATE" in str(innermost)
        protocol = "TLS: " if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError) else ""
        raise FetchFailed(f"{protocol}{reason}", is_final=is_final) from error


def _innermost(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
