"""Reading from web servers that mean harm: each attack ends in one line, in bounded time and memory."""

import gc
import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest

import sharding.reading.fetch
from infra.errors import RunFailed, UserError
from sharding.reading.cache import ShardCache
from sharding.reading.fetch import FetchConfig, FileSpec, Unavailable
from sharding.reading.location import WebFolder
from sharding.reading.manifests import read_manifest

TOTAL_S = 0.6
OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"

Attack = Callable[[], Iterator[bytes]]


def trickle(start: bytes) -> Iterator[bytes]:
    yield start
    while True:
        time.sleep(0.02)
        yield b"a"


def endless(start: bytes, again: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield again


@contextmanager
def attacking(attack: Attack) -> Iterator[str]:
    """Answer every connection with the bytes of an attack, as long as the client takes them."""
    ending = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(5)
            connection.recv(1 << 16)
            for part in attack():
                if ending.is_set():
                    return
                connection.sendall(part)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=answer, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=[listener], daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/set"
        finally:
            ending.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def fetch_config(cache_folder: Path) -> FetchConfig:
    return FetchConfig(cache_folder=cache_folder, attempts=2, stall_s=TOTAL_S, total_s=TOTAL_S)


SLOW = {
    "status line": lambda: trickle(b"HTTP/1.1 2"),
    "header": lambda: trickle(OK + b"X: "),
    "size of a chunk": lambda: trickle(CHUNKED + b"1;"),
    "body": lambda: trickle(OK + b"Content-Length: 100000\r\n\r\n"),
    "body of unknown length": lambda: trickle(OK + b"\r\n"),
    "trailer": lambda: endless(CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: y\r\n" * 1000),
    "interim answers": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "redirection": lambda: trickle(b"HTTP/1.1 302 Found\r\nLocation: /"),
}


@pytest.mark.parametrize("name", SLOW)
def test_endless_answer_ends_when_the_time_is_used_up(name: str, tmp_path: Path) -> None:
    with attacking(SLOW[name]) as url:
        began_s = time.monotonic()
        with pytest.raises(RunFailed, match=rf"^{url}/manifest\.json cannot be downloaded: .* is used up$"):
            read_manifest(url, fetch_config(tmp_path))
        assert time.monotonic() - began_s < 2 * TOTAL_S


def test_shard_that_trickles_in_ends_when_the_time_is_used_up(tmp_path: Path) -> None:
    with attacking(SLOW["size of a chunk"]) as url, pytest.raises(Unavailable, match=r"is used up$"):
        ShardCache(fetch_config(tmp_path)).open(WebFolder(url), FileSpec("a.tar", sha256().hexdigest(), 10_000))


LARGE = {
    "announced": lambda: iter([OK + b"Content-Length: 1000000000000\r\n\r\n"]),
    "unannounced": lambda: endless(OK + b"\r\n", bytes(1 << 16)),
    "in chunks": lambda: endless(CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
}


@pytest.mark.parametrize("name", LARGE)
def test_manifest_without_an_end_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding.reading.fetch, "SMALL_BYTES", 8 << 20)
    with attacking(LARGE[name]) as url, pytest.raises(UserError, match=r"/manifest\.json .* has more than 8 MiB"):
        read_manifest(url, FetchConfig(cache_folder=tmp_path))


def test_body_of_a_redirection_is_not_read(tmp_path: Path) -> None:
    def redirection() -> Iterator[bytes]:
        return endless(b"HTTP/1.1 302 Found\r\nLocation: /x\r\n\r\n", bytes(1 << 16))

    with attacking(redirection) as url, pytest.raises(UserError, match="the server redirects more than 20 times"):
        read_manifest(url, FetchConfig(cache_folder=tmp_path))


def test_compressed_answer_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(100 << 20))
    header = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    with attacking(lambda: iter([header, bomb])) as url, pytest.raises(UserError, match="cannot be read"):
        read_manifest(url, FetchConfig(cache_folder=tmp_path))


def test_answer_of_contradictory_lengths_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    answer = OK + b"Content-Length: 7, 8\r\n\r\n{}"
    with attacking(lambda: iter([answer])) as url:
        with pytest.raises(UserError, match=r"/manifest\.json cannot be downloaded: InvalidHeader"):
            read_manifest(url, FetchConfig(cache_folder=tmp_path))
        gc.collect()  # would warn of a socket that nobody closed, which pytest makes an error
