"""A damaged `results.json` or `selection.json` is one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_one_line(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write_results(tmp_path, made_results())
    write_selection(tmp_path, made_selection())
    for name, read in (("results.json", read_results), ("selection.json", read_selection)):
        path = tmp_path / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError, match=rf"^{path} cannot be read: [^\n]+; .*probe the run again"):
            read(tmp_path)
