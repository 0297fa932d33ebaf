"""Whatever a file holds instead of the expected JSON is one error in one line."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from infra.storage.json_files import BadJson, decode_json, encode_json, encode_line, read_json


@dataclass(frozen=True)
class Record:
    name: str
    count: int
    values: dict[str, float | None] = field(default_factory=dict)


WHOLE = encode_json(Record("a", 1, {"x": 0.5}))
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("content", "is_cut"),
    [
        (b"", True),
        (WHOLE[:-3], True),
        (bytes(100), True),
        (WHOLE.replace(b'"a"', b'"a\xff"'), True),
        (WHOLE.decode().encode("utf-16"), True),
        (DEEP, False),
        (b'{"name": "a", "count": 1, "other": ' + DEEP + b"}", True),
        (b'{"name": "a", "count": 1, "values": ' + b'{"x": ' * 50_000 + b"1" + b"}" * 50_001, False),
        (b'{"name": "a", "count": NaN}', True),
        (b'{"name": "a", "count": 1, "values": {"x": 1e999}}', False),
        (b'{"name": "a"}', False),
        (b'{"name": "a", "count": "1"}', False),
        (b'{"name": "a", "count": ' + b"9" * 5000 + b"}", False),
        (b"5", False),
    ],
)
def test_everything_else_is_one_error(tmp_path: Path, content: bytes, is_cut: bool) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(BadJson) as caught:
        decode_json(content, Record)
    assert caught.value.is_cut == is_cut
    assert str(caught.value).strip()
    assert "\n" not in str(caught.value)
    with pytest.raises(BadJson, match=re.escape(str(caught.value))):
        read_json(tmp_path / "file", Record)


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_is_the_error_or_still_a_record(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(200):
        content = bytearray(WHOLE)
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
        try:
            assert isinstance(decode_json(bytes(content), Record), Record)
        except BadJson as error:
            assert "\n" not in str(error)


def test_a_missing_file_is_no_damage_and_an_unreadable_one_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", Record)
    with pytest.raises(BadJson, match="not a regular file"):
        read_json(tmp_path, Record)


def test_what_is_written_is_read_and_numbers_that_are_not_finite_become_null() -> None:
    record = Record("Müller\n", 2, {"loss": float("nan"), "rate": float("inf"), "x": 0.1})
    for content in (encode_json(record), encode_line(record)):
        assert decode_json(content, Record) == Record("Müller\n", 2, {"loss": None, "rate": None, "x": 0.1})
    assert encode_line(record).count(b"\n") == 1
