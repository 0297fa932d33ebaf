"""Where packed shards are read from: a local folder, a web server or an object store."""

import re
import threading
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import IncompleteRead
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

import requests
import urllib3

from infra.errors import require
from infra.parallel.background import call_within
from infra.storage.object_store import NOT_FOUND, SCHEMES, ObjectStore, StoreFailed, file_path
from infra.urls import Location, require_no_credentials, scheme_of, shown
from sharding.reading.web_session import WebSession

__all__ = ["FetchFailed", "LocalFolder", "Location", "RemoteBody", "RemoteFolder", "ShardFolder", "StoreFolder"]
__all__ += ["WebFolder", "open_location"]

_CHUNK_BYTES: Final = 1 << 20
_RANGE_BYTES: Final = 4 << 20  # read from an object store at a time; all of it must arrive within `timeout_s`
_MOST_REDIRECTIONS: Final = 20
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
        announced_bytes: the number of bytes that will come, 0 if that is unknown
    """

    start: int
    chunks: Generator[bytes, None, None]
    announced_bytes: int


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

    def open(self, file: str, start: int, timeout_s: float, left_s: float) -> RemoteBody:
        """Begin to read a file.

        Args:
            file: its name
            start: position of the first byte to read
            timeout_s: the longest wait for the next byte, in seconds
            left_s: the longest time until the last byte, in seconds

        Raises:
            FetchFailed: if the server does not send it
        """
        url = self._url._replace(path=f"{self._url.path.rstrip('/')}/{file}").geturl()
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        session = self._session()
        deadline_s = time.monotonic() + left_s
        try:
            # The timeouts of requests begin again with every byte of a header, and with every address of a server.
            response = call_within(left_s, lambda: _get(session, url, headers, timeout_s), requests.Response.close)
        except TimeoutError as error:
            del self._local.session  # the thread that nobody waits for still uses it
            raise FetchFailed("no answer arrived in time") from error
        try:
            begin = _first_byte(response, start)
        except FetchFailed:
            response.close()
            raise
        return RemoteBody(begin, _chunks(response, timeout_s, deadline_s), response.raw.length_remaining or 0)

    def _session(self) -> requests.Session:
        """Return this thread's connections."""
        if not hasattr(self._local, "session"):
            self._local.session = WebSession()
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

    def open(self, file: str, start: int, timeout_s: float, left_s: float) -> RemoteBody:
        """Begin to read a file.

        Args:
            file: its name
            start: position of the first byte to read
            timeout_s: the longest wait for the next 4 MiB, in seconds
            left_s: the longest time until the last byte, in seconds

        Raises:
            FetchFailed: if the store does not have the file, or not that many bytes of it
        """
        timeout_s = min(timeout_s, left_s)
        with _store_errors():
            size_bytes = self._store.size(file, timeout_s)
        if start > size_bytes:
            raise FetchFailed(f"it has only {size_bytes} bytes", from_zero=True)
        return RemoteBody(start, self._ranges(file, start, size_bytes, timeout_s), size_bytes - start)

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


def _get(session: requests.Session, url: str, headers: dict[str, str], timeout_s: float) -> requests.Response:
    """Request a URL and follow redirections; only the server that the user named gets the credentials of ~/.netrc."""
    target = url
    for _ in range(_MOST_REDIRECTIONS + 1):
        is_other = session.should_strip_auth(url, target)  # type: ignore[no-untyped-call]
        auth = _no_credentials if is_other else None
        with _web_errors(timeout_s):
            response = session.get(target, headers=headers, stream=True, timeout=timeout_s, auth=auth)
        if not response.is_redirect:
            return response
        response.close()
        target = _redirected(session, response)
    raise FetchFailed(f"the server redirects more than {_MOST_REDIRECTIONS} times", is_final=True)


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave a request without credentials; without this, requests would look for some in ~/.netrc."""
    return request


def _redirected(session: requests.Session, response: requests.Response) -> str:
    """Return the URL that a redirection leads to; raise FetchFailed if it leaves the web or gives up encryption."""
    try:
        target = urljoin(response.url, session.get_redirect_target(response))
        scheme = urlsplit(target).scheme if urlsplit(target).port != 0 else ""
    except ValueError as error:  # an invalid encoding, port or IPv6 address
        raise FetchFailed("the server redirects to something that is not a URL", is_final=True) from error
    if scheme not in ("http", "https"):
        raise FetchFailed("the server redirects to something that is not on the web", is_final=True)
    if urlsplit(response.url).scheme == "https" and scheme == "http":
        reason = "the server redirects from https to http, where others can read and change the data"
        raise FetchFailed(f"{reason}; name an address that stays encrypted", is_final=True)
    return target


def _first_byte(response: requests.Response, start: int) -> int:
    """Return the position of an answer's first byte; raise FetchFailed unless the status is a success."""
    status = response.status_code
    if status == HTTPStatus.OK:
        return 0
    if status == HTTPStatus.PARTIAL_CONTENT:
        begin = re.match(r"bytes (\d{1,18})-", response.headers.get("Content-Range", ""))
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
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _chunks(response: requests.Response, timeout_s: float, deadline_s: float) -> Generator[bytes, None, None]:
    """Yield a body as it arrives, so that an interruption loses none of it.

    A timer ends the reading, because a single chunk may take as long as the server wants: its size may trickle in.
    """
    timer = threading.Timer(deadline_s - time.monotonic(), _shut_down, [response])
    timer.daemon = True
    with closing(response):
        timer.start()
        try:
            with _web_errors(timeout_s):
                while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                    yield chunk
        except FetchFailed:
            if time.monotonic() < deadline_s:
                raise
        finally:
            timer.cancel()
    if time.monotonic() >= deadline_s:
        raise FetchFailed("not all bytes arrived in time")


def _shut_down(response: requests.Response) -> None:
    with suppress(RuntimeError, ValueError):  # it has ended meanwhile
        response.raw.shutdown()


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
