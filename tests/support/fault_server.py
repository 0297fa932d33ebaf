"""An HTTP server over a folder with scripted faults, by file and by request."""

import re
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

Kind = Literal[
    "status",  # this status and a short text instead of the file
    "cut",  # full Content-Length, but the connection ends after `at` bytes
    "cut unannounced",  # no Content-Length, and the connection ends after `at` bytes, as at the end of a file
    "unannounced",  # no Content-Length, all bytes
    "reset",  # TCP reset after `at` bytes
    "silent",  # `at` bytes, then nothing, but the connection stays open
    "trickle",  # `at` bytes, then 20 bytes a second
    "flip",  # one flipped bit in byte `at` of the file
    "excess",  # `at` bytes too many, counted in Content-Length
    "ignore range",  # 200 and the whole file for every request
    "shift range",  # 206 with a correct Content-Range, but of a part that starts `at` bytes late
    "mislabel range",  # 206 with the right part, but a Content-Range that names another one
    "redirect",  # to the address `value`
    "reset at once",  # TCP reset instead of an answer
]


@dataclass(frozen=True)
class Fault:
    """A fault of one answer.

    Attributes:
        kind: see `Kind`.
        at: a number of bytes; for `status` the status code.
        value: for `status` the Retry-After header, for `redirect` the address.
    """

    kind: Kind
    at: int = 0
    value: str = ""


class Request(NamedTuple):
    """A request that arrived."""

    method: str
    path: str
    range: str | None
    arrived_s: float  # on the monotonic clock
    authorization: str | None = None

    @property
    def first_byte(self) -> int:
        """The start of the range; 0 without one."""
        start = re.match(r"bytes=(\d+)-", self.range or "")
        return int(start[1]) if start else 0


class FaultServer(ThreadingHTTPServer):
    """A server of the files in `folder`, on a free port.

    Attributes:
        url: address of the folder.
        requests: requests so far, in order.
        sent: bytes of bodies sent so far, by path.
        ending: set when the server shuts down.
    """

    daemon_threads = True

    def __init__(
        self, folder: Path, handler: "type[FaultHandler] | None" = None, certificate: Path | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler or FaultHandler)
        self.folder = folder
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.requests: list[Request] = []
        self.sent: defaultdict[str, int] = defaultdict(int)
        self.ending = threading.Event()
        self._scripts: dict[str, list[Fault | None]] = {}
        self._lasting: dict[str, Fault] = {}
        self._lock = threading.Lock()

    def script(self, path: str, *faults: Fault | None) -> None:
        """Answer the next GET requests of a path with these faults in turn (None: a correct answer), then correctly."""
        with self._lock:
            self._scripts[path] = list(faults)

    def always(self, path: str, fault: Fault) -> None:
        """Answer every request of a path with this fault."""
        self._lasting[path] = fault

    def heal(self) -> None:
        """Remove all faults, and forget all requests."""
        with self._lock:
            self._scripts.clear()
            self._lasting.clear()
            self.requests.clear()
            self.sent.clear()

    def gets(self, path: str) -> list[Request]:
        """Return the GET requests of a path so far."""
        with self._lock:
            return [request for request in self.requests if request.path == path and request.method == "GET"]

    def take_fault(self, request: Request) -> Fault | None:
        """Record a request and return its fault; HEAD requests get only those set by `always`."""
        with self._lock:
            self.requests.append(request)
            if request.path in self._lasting:
                return self._lasting[request.path]
            script = self._scripts.get(request.path)
            return script.pop(0) if script and request.method == "GET" else None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing when a client disconnects: clients may."""


class FaultHandler(BaseHTTPRequestHandler):
    """Handler of GET and HEAD requests, with Range."""

    protocol_version = "HTTP/1.1"
    server: FaultServer

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Answer with headers."""
        self._answer()

    def do_GET(self) -> None:
        """Answer with headers and bytes."""
        self._answer()

    def file(self, path: str) -> Path | None:
        """Return the file at a request path, or None."""
        file = self.server.folder / path.lstrip("/")
        return file if file.is_file() else None

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = self.headers
        request = Request(self.command, path, headers["Range"], time.monotonic(), headers["Authorization"])
        fault = self.server.take_fault(request)
        file = self.file(path)
        if fault is not None and fault.kind in ("status", "redirect", "reset at once"):
            self._refuse(fault)
        elif file is None:
            self.send_text(404, b"no such file")
        else:
            self._send(file.read_bytes(), fault or Fault("flip", -1), path)

    def _refuse(self, fault: Fault) -> None:
        if fault.kind == "reset at once":
            self._reset()
        elif fault.kind == "redirect":
            self.send_text(302, b"", Location=fault.value)
        else:
            self.send_text(fault.at, b"scripted by the test", **({"Retry-After": fault.value} if fault.value else {}))

    def send_text(self, status: int, body: bytes, **headers: str) -> None:
        """Send a small answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send(self, content: bytes, fault: Fault, path: str) -> None:
        start, stop = self._range(len(content), fault)
        if start >= len(content) and len(content):
            return self.send_text(416, b"", **{"Content-Range": f"bytes */{len(content)}"})
        if fault.kind == "flip" and 0 <= fault.at < len(content):
            content = content[: fault.at] + bytes([content[fault.at] ^ 1]) + content[fault.at + 1 :]
        body = content[start:stop] + (bytes(fault.at) if fault.kind == "excess" else b"")
        partial = (start, stop) != (0, len(content))
        self.send_response(206 if partial else 200)
        if partial:
            shift = 1 if fault.kind == "mislabel range" else 0
            self.send_header("Content-Range", f"bytes {start + shift}-{stop - 1}/{len(content)}")
        if fault.kind != "ignore range":
            self.send_header("Accept-Ranges", "bytes")
        if fault.kind in ("unannounced", "cut unannounced"):
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(body, fault, path)
        return None

    def _range(self, size: int, fault: Fault) -> tuple[int, int]:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None or fault.kind == "ignore range":
            return 0, size
        start = int(wanted[1]) + (fault.at if fault.kind == "shift range" else 0)
        return start, min(int(wanted[2]) + 1, size) if wanted[2] else size

    def _send_body(self, body: bytes, fault: Fault, path: str) -> None:
        broken_off = fault.kind in ("cut", "cut unannounced", "reset", "silent", "trickle")
        part = body[: fault.at] if broken_off else body
        self.wfile.write(part)
        self.wfile.flush()
        self.server.sent[path] += len(part)
        if fault.kind in ("cut", "cut unannounced", "unannounced"):
            self.close_connection = True
        elif fault.kind == "reset":
            self._reset()
        elif fault.kind == "silent":
            self.server.ending.wait()
            self.close_connection = True
        elif fault.kind == "trickle":
            for byte in body[fault.at :]:
                self.wfile.write(bytes([byte]))
                if self.server.ending.wait(0.05):
                    break
            self.close_connection = True

    def _reset(self) -> None:
        self.server.ending.wait(0.05)  # otherwise the reset overtakes the bytes before it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()  # with SO_LINGER 0 this is a reset


@contextmanager
def serving(
    folder: Path, handler: type[FaultHandler] | None = None, certificate: Path | None = None
) -> Iterator[FaultServer]:
    """Serve a folder until the block ends, by https if there is a certificate."""
    server = FaultServer(folder, handler, certificate)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fault-server")
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()


def first_bytes(requests: Sequence[Request]) -> list[int]:
    """Return the first byte that each request asked for."""
    return [request.first_byte for request in requests]
