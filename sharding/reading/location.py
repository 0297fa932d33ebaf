"""Where a packed folder is: on this machine, behind a web server, or in an object store."""

import asyncio
import re
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import IncompleteRead
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import fsspec
import requests
import urllib3
from fsspec.core import url_to_fs

from infra.errors import UserError, require

Location = str | Path  # of a packed folder, as a user names it: a path or a URL

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")
_PACKAGES: Final = {"s3": "s3fs", "gs": "gcsfs"}
_CHUNK_BYTES: Final = 1 << 20
_RANGE_BYTES: Final = 4 << 20  # of an object store's file, asked for at a time: the least that must come in `stall_s`
_MAY_PASS: Final = (408, 416, 425, 429)  # of the statuses below 500


class FetchFailed(Exception):
    """A file could not be read to its end.

    reason: why, without anything secret.
    is_final: asking again is of no use.
    from_zero: what came so far is not to be continued.
    wait_s: how long the server asks to wait.
    """

    def __init__(
        self, reason: str, *, is_final: bool = False, from_zero: bool = False, wait_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.reason, self.is_final, self.from_zero, self.wait_s = reason, is_final, from_zero, wait_s


class RemoteBody(NamedTuple):
    """What comes of a file. start: the byte with which it begins, 0 where a server does not continue.

    chunks: raises FetchFailed; close it when done.
    """

    start: int
    chunks: Generator[bytes, None, None]


class LocalFolder:
    """A local folder, read in place.

    Attributes:
        name: how it is called in messages.
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)


class WebFolder:
    """A folder behind a web server; used from several threads.

    Credentials are those of ~/.netrc, or of the URL; proxies and certificates are the environment's.

    Attributes:
        name: how it is called in messages: the URL without user, password and query.
    """

    def __init__(self, url: str) -> None:
        self.name = without_credentials(url)
        try:
            parts = urlsplit(url)
            is_whole = bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port or an IPv6 address that is none
            is_whole = False
        require(is_whole, f"{self.name} names no server; write http://SERVER/FOLDER")
        self._url = parts._replace(fragment="")
        self._own = threading.local()

    def open(self, file: str, start: int, timeout_s: float) -> RemoteBody:
        """Begin to read a file from byte `start`; no byte may be longer than `timeout_s` in coming.

        Raises FetchFailed.
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
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        session: requests.Session = self._own.session
        return session


class StoreFolder:
    """A folder of an object store, opened by fsspec with the credentials that its client finds; for several threads.

    Attributes:
        name: its URL.
    """

    def __init__(self, url: str, scheme: str) -> None:
        self.name = without_credentials(url)
        require(
            url.rstrip("/") == self.name,
            f"{self.name} is given with user or query; credentials stand in the environment or in the client's files",
        )
        package = _PACKAGES[scheme]
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if scheme == "s3":  # retried by one rule for all sources
            own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
            options["config_kwargs"] = {**own, "retries": {"total_max_attempts": 1}}
        try:
            self._store, path = url_to_fs(url, **options)
        except ImportError as error:
            raise UserError(f"{self.name} needs the package {package}; install it: pip install {package}") from error
        except Exception as error:
            raise UserError(
                f"{self.name} cannot be opened: {_one_line(error)}; check address and credentials"
            ) from error
        self._store.retries = 1
        self._path = path.rstrip("/")
        require(bool(self._path), f"{self.name} names no bucket; write {scheme}://BUCKET/FOLDER")

    def open(self, file: str, start: int, timeout_s: float) -> RemoteBody:
        """Begin to read a file from byte `start`; 4 MiB may take no longer than `timeout_s`. Raises FetchFailed."""
        path = f"{self._path}/{file}"
        facts = self._wait_for(self._store._info(path), timeout_s)
        if facts["type"] != "file":
            raise FetchFailed("not found", is_final=True)
        size_bytes = int(facts["size"])
        if start > size_bytes:
            raise FetchFailed(f"it has {size_bytes} bytes only", from_zero=True)
        return RemoteBody(start, self._ranges(path, start, size_bytes, timeout_s))

    def _ranges(self, path: str, start: int, size_bytes: int, timeout_s: float) -> Generator[bytes, None, None]:
        for begin in range(start, size_bytes, _RANGE_BYTES):
            end = min(begin + _RANGE_BYTES, size_bytes)
            content: bytes = self._wait_for(self._store._cat_file(path, start=begin, end=end), timeout_s)
            if len(content) != end - begin:
                raise FetchFailed(f"{len(content)} bytes came instead of {end - begin}")
            yield content

    def _wait_for(self, answer: Coroutine[Any, Any, Any], timeout_s: float) -> Any:
        """Return what the client's coroutine returns; turns whatever it raises into FetchFailed."""
        coming = asyncio.run_coroutine_threadsafe(answer, self._store.loop)
        try:
            return coming.result(timeout_s)
        except (TimeoutError, CancelledError) as error:
            coming.cancel()
            raise FetchFailed(f"no answer within {timeout_s:g} s") from error
        except FileNotFoundError as error:
            raise FetchFailed("not found", is_final=True) from error
        except PermissionError as error:
            raise FetchFailed(f"no permission: {_one_line(error)}; check the credentials", is_final=True) from error
        except Exception as error:
            is_final = "Credential" in type(error).__name__  # botocore's and google-auth's; neither need be installed
            raise FetchFailed(_one_line(error), is_final=is_final) from error


RemoteFolder = WebFolder | StoreFolder
ShardFolder = LocalFolder | RemoteFolder


def open_location(place: Location) -> ShardFolder:
    """Return what `place` names: a local folder, or a URL of file, http, https, s3 or gs.

    Raises UserError for any other URL, such as a `pipe:`, which would run a command, and for an object store without
    its client package.
    """
    found = _SCHEME.match(place) if isinstance(place, str) else None
    if found is None or not isinstance(place, str):
        return LocalFolder(Path(place))
    scheme = found[1].lower()
    rest = place[found.end() :]
    if scheme in ("file", "http", "https", "s3", "gs"):
        require(rest.startswith("//"), f"{without_credentials(place)} is no URL; write {scheme}://... with two slashes")
    if scheme == "file":
        parts = urlsplit(place)
        require(parts.hostname in (None, "localhost"), f"{place} is on another machine; write file:///FOLDER")
        return LocalFolder(Path(unquote(parts.path)))
    if scheme in ("http", "https"):
        return WebFolder(place)
    if scheme in _PACKAGES:
        return StoreFolder(place, scheme)
    raise UserError(
        f"{found[1]}: is not where shards can be read from; name a local folder (./{found[1]}:... if that is its "
        "name) or a URL of file, http, https, s3 or gs"
    )


def without_credentials(place: Location) -> str:
    """Return how a place is called in messages: without the user, password and query of a URL."""
    if isinstance(place, Path) or _SCHEME.match(place) is None:
        return str(place)
    bare = re.split(r"[?#]", place, maxsplit=1)[0]
    return re.sub(r"^([^/]*//)[^/]*@", r"\1", bare).rstrip("/")


def _first_byte(response: requests.Response, start: int) -> int:
    """Return the byte with which an answer begins; raises FetchFailed unless it is a right answer."""
    status = response.status_code
    if status == HTTPStatus.OK:
        return 0
    if status == HTTPStatus.PARTIAL_CONTENT:
        begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if begin is None or int(begin[1]) != start:
            raise FetchFailed(f"the server sent another range than the one from byte {start}", from_zero=True)
        return start
    phrase = next((known.phrase for known in HTTPStatus if known == status), "unknown status")
    login = "; check the credentials (~/.netrc)" if status in (401, 403, 407) else ""
    raise FetchFailed(
        f"{status} {phrase}{login}",
        is_final=status < 500 and status not in _MAY_PASS,
        from_zero=status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
        wait_s=_retry_after_s(response.headers.get("Retry-After", "")),
    )


def _retry_after_s(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks for: a number or a date (RFC 9110, 10.2.3)."""
    if value.strip().isdecimal():
        return float(value)
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _chunks(response: requests.Response, timeout_s: float) -> Generator[bytes, None, None]:
    """Yield a body as it comes, so that nothing of it is lost when it breaks off."""
    with closing(response), _web_errors(timeout_s):
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
            yield chunk


@contextmanager
def _web_errors(timeout_s: float) -> Generator[None, None, None]:
    """Turn what requests and urllib3 raise into FetchFailed; their own messages hold whole URLs, secrets included."""
    try:
        yield
    except requests.Timeout as error:
        raise FetchFailed(f"no byte came for {timeout_s:g} s") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        innermost = _innermost(error)
        if isinstance(innermost, TimeoutError):
            raise FetchFailed(f"no byte came for {timeout_s:g} s") from error
        broken_off = isinstance(innermost, IncompleteRead | urllib3.exceptions.IncompleteRead)
        reason = (
            "the answer broke off" if broken_off else getattr(innermost, "strerror", "") or type(innermost).__name__
        )
        # A refused certificate, a redirection in circles or to another kind of place: the same the next time.
        is_final = isinstance(error, requests.TooManyRedirects | ValueError) or "CERTIFICATE" in str(innermost)
        secured = "TLS: " if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError) else ""
        raise FetchFailed(f"{secured}{reason}", is_final=is_final) from error


def _innermost(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _one_line(error: BaseException) -> str:
    """Return what an error says in one short line without queries of URLs, which may be signatures."""
    text = re.sub(r"\?\S+", "?...", re.sub(r"\s+", " ", str(error)).strip())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
