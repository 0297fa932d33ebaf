"""A manifest that was damaged, or that contradicts itself, is one line."""

from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from infra.storage.json_files import decode_json, encode_json
from sharding.format.manifest import Manifest, NotJson, Shard, decode_manifest, encode_manifest

SHARD = Shard("cell-all-100-00000.tar", 3, 20480, "a" * 64, "b" * 64, 100)
MANIFEST = Manifest(1, "cell", "sternum 0", {"seed": 0}, 3, 2, 0.5, 0.25, [SHARD], [])


def changed(**values: Any) -> bytes:
    return encode_json(decode_json(encode_manifest(MANIFEST), dict[str, Any]) | values)


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert decode_manifest(encode_manifest(MANIFEST), "manifest.json") == MANIFEST


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"pixel_std": 0.0}, r"pixel_std=0\.0 must be between 0\.0001 and 0\.5"),
        ({"pixel_std": 1e-300}, "pixel_std=1e-300 must be between"),
        ({"pixel_std": 0.6}, r"pixel_std=0\.6 must be between"),
        ({"pixel_mean": -0.1}, r"pixel_mean=-0\.1 must be between 0 and 1"),
        ({"pixel_mean": float("nan")}, "pixel_mean"),
        ({"samples": 4}, "samples=4, but its shards hold 3"),
        ({"patients": 4}, "patients=4 does not fit 3 samples"),
        ({"patients": -1}, "patients=-1 does not fit 3 samples"),
    ],
)
def test_impossible_numbers_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        decode_manifest(changed(**values), "manifest.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(1000),
        encode_manifest(MANIFEST)[:-20],
        encode_manifest(MANIFEST).replace(b'"cell"', b'"ce\xff\xfell"'),
        encode_manifest(MANIFEST).decode().encode("utf-16"),
        b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b"," + encode_manifest(MANIFEST)[1:],
    ],
)
def test_bytes_that_are_no_json_are_one_line_and_may_be_downloaded_again(content: bytes) -> None:
    with pytest.raises(NotJson, match=r"^X/manifest\.json cannot be read: [^\n]+; pack the dataset again$"):
        decode_manifest(content, "X/manifest.json")


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_is_one_line_or_another_manifest(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(100):
        content = bytearray(encode_manifest(MANIFEST))
        content[random.integers(len(content))] ^= 1 << int(random.integers(8))
        try:
            decode_manifest(bytes(content), "manifest.json")
        except UserError as error:
            assert "\n" not in str(error)
