"""Reading and writing JSON: the only place where bytes from a disk or a network become records.

A damaged disk, a broken transfer or a stranger may have put anything into a file. So every way in which it can fail
to be the expected record is one error, `BadJson`, and its reader decides what that costs.
"""

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from infra.errors import UserError
from infra.storage.files import read_small

T = TypeVar("T")


class BadJson(ValueError):
    """Bytes that are not the expected JSON; the message is the reason in one line.

    Attributes:
        is_cut: whether they are no JSON at all, as after a broken transfer; reading them again may help
    """

    def __init__(self, reason: str, *, is_cut: bool = False) -> None:
        super().__init__(reason)
        self.is_cut = is_cut


def decode_json(content: bytes, expected: type[T]) -> T:
    """Return the value that JSON stands for.

    Args:
        content: the bytes of one JSON value
        expected: its type; fields of a dataclass that it does not name are ignored

    Raises:
        BadJson: if the bytes are not JSON, or not of this type
    """
    try:
        return msgspec.json.decode(content, type=expected)
    except msgspec.ValidationError as error:
        raise BadJson(str(error)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError, ValueError) as error:
        raise BadJson(_reason(error), is_cut=True) from error


def read_json(path: Path, expected: type[T]) -> T:
    """Return the value in a JSON file.

    Raises:
        FileNotFoundError: if there is no such file
        BadJson: if it cannot be read, is too large, is not JSON, or not of this type
    """
    try:
        content = read_small(path)
    except FileNotFoundError:
        raise
    except (OSError, UserError) as error:
        raise BadJson(str(error)) from error
    return decode_json(content, expected)


def encode_json(value: Any) -> bytes:
    """Return JSON for a file that people may read; numbers that JSON lacks (NaN and infinity) become null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def encode_line(value: Any) -> bytes:
    """Return JSON on one line with its end, for a file that grows; numbers that JSON lacks become null."""
    return msgspec.json.encode(value) + b"\n"


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its values are nested too deeply"
    if isinstance(error, UnicodeError):
        return "its text is not UTF-8"
    return " ".join(str(error).split())
