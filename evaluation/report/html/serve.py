"""A live page of a run: a small server that makes the page anew whenever the run's files have changed."""

import hashlib
import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_urlsafe
from socket import AF_INET6, gethostname
from threading import Lock
from typing import Any, Final
from urllib.parse import urlsplit

from typing_extensions import override

from evaluation.report.html.page import render_message, render_run
from infra.errors import RunFailed, UserError

# What the page is made of; a new checkpoint changes the time of its folder.
_WATCHED: Final = (
    "config.yaml", "metrics.jsonl", "status.json", "results.json", "selection.json", "checkpoints", "pictures",
)  # fmt: skip


class LivePage:
    """The page of one run, made once for each state of its files."""

    def __init__(self, run: Path, *, images: bool) -> None:
        """Remember what to show.

        Args:
            run: the run folder
            images: whether the page shows images of patients
        """
        self._run, self._images = run, images
        self._lock = Lock()
        self._made = ("", "")  # state and page

    def state(self) -> str:
        """Return a text that changes whenever a watched file does."""
        return hashlib.sha256("".join(self._times()).encode()).hexdigest()[:16]

    def _times(self) -> Iterator[str]:
        for name in _WATCHED:
            try:
                status = (self._run / name).stat()
            except OSError:
                yield f"{name}:-"
            else:
                yield f"{name}:{status.st_mtime_ns}:{status.st_size}"

    def page(self) -> str:
        """Return the page of the current state; while a file is damaged or half there, one that says so."""
        with self._lock:  # matplotlib draws one figure at a time
            state = self.state()
            if self._made[0] != state:
                try:
                    page = render_run(self._run, images=self._images, state=state)
                except (UserError, RunFailed) as error:
                    page = render_message(self._run.resolve().name, str(error), state)
                self._made = state, page
            return self._made[1]


class PageServer(ThreadingHTTPServer):
    """Answers `/TOKEN/` with the page and `/TOKEN/state` with its state, and nothing else: it opens no file by name.

    Others on this machine can reach a loopback port, so the address holds a token that only its owner is told. The
    Host header must name this server, so that no page from elsewhere reaches it by a name of its own.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, host: str, port: int) -> None:
        """Listen at an address; `port` 0 takes a free one."""
        self.token = token_urlsafe(16)
        if ":" in host:
            self.address_family = AF_INET6
        self._host = host
        super().__init__((host, port), partial(_Handler, page))

    @property
    def url(self) -> str:
        """The address of the page."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_port}/{self.token}/"

    def knows(self, host: str) -> bool:
        """Return whether a Host header names this server: by its address or name, never by a foreign domain."""
        try:
            name, port = urlsplit(f"//{host}").hostname or "", urlsplit(f"//{host}").port or 80
        except ValueError:
            return False
        known = {"localhost", self._host} if _is_loopback(self._host) else {"localhost", gethostname().lower()}
        return port == self.server_port and (name in known or (not _is_loopback(self._host) and _is_address(name)))


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: PageServer
    server_version = "Sternum"
    sys_version = ""

    def __init__(self, page: LivePage, *arguments: Any) -> None:
        self._page = page
        super().__init__(*arguments)

    def do_GET(self) -> None:  # the name that http.server calls
        """Send the page or its state."""
        path = urlsplit(self.path).path
        if not self.server.knows(self.headers.get("Host", "")):
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "unknown host\n")
        elif path == f"/{self.server.token}/":
            self._send(HTTPStatus.OK, "text/html", self._page.page())
        elif path == f"/{self.server.token}/state":
            self._send(HTTPStatus.OK, "text/plain", self._page.state())
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", "not found\n")

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        self.wfile.write(content)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the page asks for its state every few seconds."""


@contextmanager
def serving(run: Path, host: str, port: int, *, images: bool) -> Iterator[PageServer]:
    """Yield a server that listens for requests about a run; its `serve_forever` answers them.

    Args:
        run: the run folder
        host: address of this machine
        port: 0 takes a free one
        images: whether the page shows images of patients

    Raises:
        UserError: if nothing can listen there
    """
    try:
        server = PageServer(LivePage(run, images=images), host, port)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot serve at host={host}, port {port}: {getattr(error, 'strerror', None) or error}; take an address "
            "of this machine and another port, or --serve alone for a free one"
        ) from error
    with server:
        yield server


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
