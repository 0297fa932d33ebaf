"""Packed folders and answers of servers, changed at random: the right samples, masked ones, or one line.

A failure names its seed; `case(SEED, ...)` repeats it.
"""

import json
import random
import re
import shutil
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sharding.reading.fetch
from infra.errors import RunFailed, UserError
from sharding.format.manifest import INDEX_ROW
from sharding.packing.verify import verify
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata, sample_batches, sample_order
from tests.support.epoch_reader import quick_fetch, read_epoch, read_until

SECONDS = [pytest.param(4), pytest.param(120, marks=pytest.mark.slow)]
MOST_S = 20.0  # for one case on a busy machine; most end in a fraction of a second


def repeat(seconds: float, case: Callable[[random.Random], None]) -> None:
    """Call a case with one seed after the other for some seconds; an error or a slow case names its seed."""
    first = seed = time.time_ns() % 10**9
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        began_s = time.monotonic()
        try:
            case(random.Random(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        assert time.monotonic() - began_s < MOST_S, f"seed {seed} is slow"
        seed += 1
    sys.stdout.write(f"seeds {first} to {seed - 1}\n")


def is_one_line(error: BaseException) -> bool:
    return isinstance(error, UserError | RunFailed) and "\n" not in str(error) and len(str(error)) < 2000


NUMBERS = [b"0", b"-1", b"1", b"9" * 5000, b"1e3", b"0x10", b"", b" 7", b"nan", b"7, 7", b"7, 8", b"\xb2", b"+5"]
STATUS = [100, 101, 103, 200, 204, 206, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 407, 408, 416, 425, 429, 500]
LOCATIONS = [
    b"/set/manifest.json",
    b"",
    b"//",
    b"http://",
    b"http://[::1",
    b"file:///etc/passwd",
    b"\xff\xfe",
    b"?" * 9000,
]
LOCATIONS += [
    b"http://127.0.0.1:1/x",
    b"https://127.0.0.1:1/x",
    b"http://a..b/",
    b"http://" + b"a" * 300,
    b"data:,x",
    b"x y",
]
DATES = [b"Thu, 01 Jan 1970 00:00:00 GMT", b"Fri, 31 Dec 9999 23:59:59 -2359", b"1 Jan 2030 00:00:00 +" + b"9" * 30]


def answer(draw: random.Random, path: str, content: bytes, start: int) -> list[bytes]:
    """Return the parts of an answer, right or changed at random."""
    is_part = start > 0 and draw.random() < 0.9
    body = content[start:] if is_part else content
    status = b"206" if is_part else b"200"
    headers = [[b"Content-Length", str(len(body)).encode()], [b"Connection", b"close"]]
    if is_part:
        headers.append([b"Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}".encode()])
    is_hashed = not path.endswith(".json")  # nothing protects a manifest against changes on the way that keep it valid
    for _ in range(draw.choice([0, 0, 0, 1, 1, 2, 3])):
        change = draw.randrange(10)
        if change == 0:
            status = str(draw.choice(STATUS)).encode()
            headers.append([b"Location", draw.choice(LOCATIONS)])
            headers.append([b"Retry-After", draw.choice([*NUMBERS[:3], *DATES])])
        elif change == 1:
            draw.choice(headers)[1] = draw.choice(NUMBERS)
        elif change == 2:
            headers.pop(draw.randrange(len(headers))) if len(headers) > 1 else None
        elif change == 3:
            headers += [[b"X" * draw.randrange(1, 70_000), b"y"]] * draw.choice([1, 1, 120])
        elif change == 4:
            headers.append([b"Content-Encoding", draw.choice([b"gzip", b"zstd", b"br", b"gzip, gzip", b"?"])])
        elif change == 5:
            body = body[: draw.randrange(len(body) + 1)]
        elif change == 6:
            body += bytes(draw.randrange(10_000))
        elif change == 7 and is_hashed and body:
            place = draw.randrange(len(body))
            body = body[:place] + bytes([body[place] ^ 1 << draw.randrange(8)]) + body[place + 1 :]
        elif change == 8:
            size = draw.choice([b"%x" % len(body), b"-1", b"ffffffffffffffff", b"g", b"", b"5;x=\xff"])
            body = size + b"\r\n" + body + b"\r\n0\r\n" + draw.choice([b"", b"X: y\r\n"]) + b"\r\n"
            headers = [[b"Transfer-Encoding", b"chunked"]]
        elif change == 9:
            headers.append([b"Content-Range", b"bytes " + draw.choice(NUMBERS) + b"-" + draw.choice(NUMBERS) + b"/*"])
    head = b"HTTP/1.1 " + status + b" X\r\n" + b"".join(b"%s: %s\r\n" % (name, value) for name, value in headers)
    whole = head + b"\r\n" + body
    kind = draw.randrange(40)
    if kind == 0:
        whole = draw.randbytes(draw.randrange(2000))
    elif kind == 1:
        whole = whole[: draw.randrange(len(head))]
    elif kind == 2:
        whole = whole.replace(b"\r\n", draw.choice([b"\n", b"\r", b"\r\n\r\n", b"\0"]), draw.randrange(1, 4))
    cut = draw.randrange(len(whole) + 1)
    return [whole[:cut], whole[cut:]]


@contextmanager
def answering(folder: Path) -> Iterator[tuple[str, Callable[[random.Random | None], None]]]:
    """Serve a folder; `set_draw` sets what changes the answers, None for nothing."""
    state: dict[str, random.Random | None] = {"draw": None}
    lock = threading.Lock()

    def reply(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(5)
            request = connection.recv(1 << 16).decode("latin1")
            target = re.match(r"GET /set/(\S*)", request)
            path = folder / target[1] if target else folder / "none"
            wanted = re.search(r"Range: bytes=(\d+)-", request)
            content = path.read_bytes() if path.is_file() else b""
            with lock:
                draw = state["draw"]
                parts = answer(draw or random.Random(), path.name, content, int(wanted[1]) if wanted else 0)
            if draw is None:
                parts = [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", content]
            for part in parts:
                connection.sendall(part)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=reply, args=[connection], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=[listener], daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/set", lambda draw: state.update(draw=draw)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("seconds", SECONDS)
def test_any_answers_end_in_the_right_samples_or_in_one_line(
    seconds: float, small_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding.reading.fetch, "_FIRST_WAIT_S", 0.001)
    undisturbed = read_epoch(str(small_shards), None)

    with answering(small_shards) as (url, set_draw):

        def case(draw: random.Random) -> None:
            cache = tmp_path / "cache"
            shutil.rmtree(cache, ignore_errors=True)
            set_draw(draw)
            fetch = quick_fetch(cache, attempts=draw.choice([1, 3, 8]), stall_s=0.5, total_s=2.0)
            epoch, error = read_until(url, fetch)
            assert epoch.valid == len(epoch.images)
            if error is None:
                assert epoch == undisturbed
            else:
                assert is_one_line(error), error
                assert url in str(error)
                assert epoch.images == undisturbed.images[: len(epoch.images)]
            set_draw(None)
            assert read_epoch(url, quick_fetch(cache)) == undisturbed  # what was left does no harm

        repeat(seconds, case)


VALUES: list[Any] = [None, True, 0, 1, -1, 2**31, 2**63, 2**64, -(2**63), 0.5, 1e308, "", "x", "../x", "\0", "\ud800"]
VALUES += ["a" * 5000, [], {}, [[]], {"a": None}, "train", "/etc/passwd", "http://127.0.0.1:1/x.tar", "\n", [1] * 1000]


def change_json(draw: random.Random, value: Any) -> Any:
    """Return JSON with one value changed, removed or added somewhere in it."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(sorted(value))
        if draw.random() < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        return value | {key: change_json(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.9:
        place = draw.randrange(len(value))
        changed = [] if draw.random() < 0.1 else [change_json(draw, value[place])] * draw.choice([1, 1, 1, 2])
        return [*value[:place], *changed, *value[place + 1 :]]
    return draw.choice([*VALUES, value + 1]) if isinstance(value, int) else draw.choice(VALUES)


def change_folder(draw: random.Random, folder: Path) -> None:
    """Change a packed folder somewhere, at times with hashes that fit the change, as someone who means harm would."""
    manifest_path = folder / "manifest.json"
    manifest = json.loads(manifest_path.read_bytes())
    shard = draw.choice(manifest["shards"])
    index_path = folder / f"{shard['name'].removesuffix('.tar')}.index.npy"
    change = draw.randrange(6)
    if change == 0:
        manifest = change_json(draw, manifest)
    elif change == 1:
        rows = np.load(index_path)
        for _ in range(draw.randrange(1, 4)):
            field = draw.choice(INDEX_ROW.names or ())
            most = np.iinfo(rows[field].dtype).max
            rows[field][draw.randrange(len(rows))] = draw.choice(
                [0, 1, 511, 512, most, most // 2, draw.randrange(most)]
            )
        np.save(index_path, rows)
    elif change == 2:
        content = bytearray(index_path.read_bytes())
        content[draw.randrange(min(len(content), 300))] = draw.randrange(256)
        index_path.write_bytes(content[: draw.choice([len(content), draw.randrange(len(content))])])
    elif change == 3:
        rows = np.load(index_path)
        row = draw.randrange(len(rows))
        tar = bytearray((folder / shard["name"]).read_bytes())
        member = draw.choice(["image", "meta"])
        start, size = int(rows[row][f"{member}_offset"]), int(rows[row][f"{member}_bytes"])
        for _ in range(draw.choice([1, 1, 5, 50])):
            tar[start + draw.randrange(size)] = draw.randrange(256)
        rows[f"{member}_crc32"][row] = zlib.crc32(tar[start : start + size])
        (folder / shard["name"]).write_bytes(tar)
        np.save(index_path, rows)
    elif change == 4:
        content = bytearray(manifest_path.read_bytes())
        content[draw.randrange(len(content))] = draw.randrange(256)
        manifest_path.write_bytes(content)
        return
    else:
        manifest_path.write_bytes(
            draw.choice([b"", b"[" * 200_000, b"null", b"{}", draw.randbytes(100), b'{"a":' * 50_000])
        )
        return
    if change in (1, 2, 3):
        shard["index_sha256"] = sha256(index_path.read_bytes()).hexdigest()
    manifest_path.write_bytes(json.dumps(manifest).encode())


@pytest.mark.parametrize("seconds", SECONDS)
def test_any_packed_folder_ends_in_samples_or_in_one_line(seconds: float, small_shards: Path, tmp_path: Path) -> None:
    def case(draw: random.Random) -> None:
        folder = tmp_path / "set"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(small_shards, folder)
        change_folder(draw, folder)
        for read in (read_everything, read_all_metadata, lambda path: verify(path, workers=1)):
            try:
                read(folder)
            except (UserError, RunFailed) as error:
                assert is_one_line(error), error

    repeat(seconds, case)


def read_everything(folder: Path) -> None:
    shards = ShardSet([folder])
    order = sample_order(shards, DataConfig([str(folder)], global_batch=8, lanes=4, shuffle_window=16), seed=3)
    with closing(sample_batches(shards, order)) as stream:
        for _ in islice(stream, 1 + min(shards.samples, 100) // 8):
            pass


def read_all_metadata(folder: Path) -> None:
    for metadata in packed_metadata(ShardSet([folder])):
        assert isinstance(metadata["patient"], str)
