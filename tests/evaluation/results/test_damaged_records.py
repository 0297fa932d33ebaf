"""A damaged `results.json`, `selection.json` or record of pictures is one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.results.picture_records import (
    ATTENTION_VERSION,
    Attention,
    AttentionMap,
    PicturedImage,
    read_attention,
    write_pictures_record,
)
from evaluation.results.results import read_results, write_results
from evaluation.results.selection import read_selection, write_selection
from infra.errors import UserError
from tests.support.probe_results import made_results, made_selection

DAMAGES: list[Callable[[bytes], bytes]] = [
    lambda content: content[:-20],
    lambda content: content.replace(b"e", b"\xff", 1),
    lambda content: b'{"other": ' + b"[" * 100_000 + b"]" * 100_000 + b"," + content[1:],
    lambda _: bytes(100),
    lambda _: b"{}",
    lambda _: b"5",
]

RECORD = Attention(
    ATTENTION_VERSION,
    *("cell", "rigorous", "epoch 24"),
    positive="PNEUMONIA",
    negative="NORMAL",
    maps=[
        AttentionMap(
            PicturedImage("cell", "test", "a", "0123456789abcdef", 1, "AP", None, 4.0, "a.jpg"), 0.9, 0.4, "m.jpg", 0.25
        )
    ],
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_pictures_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    assert read_attention(tmp_path) is None
    path = tmp_path / "pictures" / "attention.json"
    write_pictures_record(path.parent, path.name, RECORD)
    assert read_attention(tmp_path) == RECORD
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"^{path} cannot be read: [^\n]+; probe the run again"):
        read_attention(tmp_path)
    write_pictures_record(path.parent, path.name, replace(RECORD, version=99))
    with pytest.raises(UserError, match=rf"^{path} has version 99, this Sternum reads 1; probe the run again"):
        read_attention(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_results(tmp_path, made_results())
    write_selection(tmp_path, made_selection())
    for name, read in (("results.json", read_results), ("selection.json", read_selection)):
        path = tmp_path / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError, match=rf"^{path} cannot be read: [^\n]+; .*probe the run again"):
            read(tmp_path)
