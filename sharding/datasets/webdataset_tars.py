"""The members of WebDataset tars, grouped into samples by the webdataset library.

A key ends at the first dot of a member's name. Only headers and metadata are read; an image is known by its place, so
that whoever encodes it reads it from there. Nothing is unpickled: the library's own decoders are not used.
"""

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from infra.errors import UserError
from infra.storage.json_files import BadJson, decode_json
from sharding.format.manifest import Rejection

JSON: Final = "json"
CLASS: Final = "cls"  # the member that holds nothing but the class
_IMAGES: Final = ("jpg", "jpeg", "png", "tif", "tiff", "webp", "bmp", "dcm", "dicom")
_MOST_TEXT_BYTES: Final = 1 << 24  # of a member with metadata
_MOST_PADDING_BYTES: Final = 1 << 20
_NOT_A_FILE: Final = "link, folder or special member"
_NO_KEY: Final = "member without a key and an extension"
_NO_IMAGE: Final = "sample without an image"
_SEVERAL: Final = "one of several images of a sample; name the extension, or give each image a key without dots"

Cells = dict[str, str | list[str]]


class Member(NamedTuple):
    """The place of a member's content in its tar."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class TarSample:
    """A sample as its tar has it.

    Attributes:
        tar: the tar, relative to the root
        key: the key in the tar
        image: its image
        cells: the texts of the fields that were asked for, by name; blank where it has none
    """

    tar: Path
    key: str
    image: Member
    cells: Cells


@dataclass
class TarReader:
    """Reads the samples of tars, and remembers what it saw.

    Attributes:
        root: folder of the tars
        image: extension of the image; None if each sample has one
        fields: the fields of the JSON to read, or CLASS
        missing: the fields that no sample has so far
        present: all fields of the first sample
        unused: the number of members by extension that are read for nothing
    """

    root: Path
    image: str | None
    fields: tuple[str, ...]
    missing: set[str] = field(init=False)
    present: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.missing = set(self.fields)

    def read(self, tar: Path) -> Iterator[TarSample | Rejection]:
        """Yield the samples of a tar, and a rejection for each member that is part of none.

        Raises:
            UserError: if it is no whole tar, or a member occurs twice
        """
        from webdataset.tariterators import group_by_keys  # noqa: PLC0415 (it imports torch)

        path, rejected = self.root / tar, list[Rejection]()
        try:
            with path.open("rb") as file:
                for group in group_by_keys(_members(file, tar, rejected)):
                    key = group.pop("__key__")
                    del group["__url__"]
                    yield from self._sample(file, tar, key, group)
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            reason = str(error.args[0]) if error.args else type(error).__name__
            raise UserError(f"{path} is not a whole WebDataset tar: {reason}; copy or write it again") from error
        yield from rejected

    def _sample(
        self, file: BinaryIO, tar: Path, key: str, members: dict[str, Member]
    ) -> Iterator[TarSample | Rejection]:
        images = [name for name in members if name == self.image or (not self.image and _is_image(name))]
        if len(images) != 1:
            reason = _SEVERAL if images else _NO_IMAGE
            for name in images or list(members)[:1]:
                yield Rejection((tar / members[name].name).as_posix(), reason)
            return
        used = {images[0], *({JSON} if set(self.fields) - {CLASS} else ()), *({CLASS} & set(self.fields))}
        self.unused.update(members.keys() - used)
        image = members[images[0]]
        try:
            values = decode_json(_content(file, members[JSON]), dict[str, Any]) if JSON in used & members.keys() else {}
            if CLASS in used & members.keys():
                values[CLASS] = _content(file, members[CLASS]).decode().strip()
        except (BadJson, UnicodeDecodeError) as error:
            yield Rejection((tar / image.name).as_posix(), f"metadata cannot be read: {error}")
            return
        self.present = self.present or list(values)
        self.missing -= values.keys()
        yield TarSample(tar, key, image, {name: _cell(values.get(name)) for name in self.fields})


def _members(file: BinaryIO, tar: Path, rejected: list[Rejection]) -> Iterator[dict[str, Any]]:
    """Yield the members of an open tar as the library groups them, with their places instead of their contents.

    tarfile takes a damaged header for the end of the archive, so that has to be looked at.
    """
    from webdataset.tariterators import base_plus_ext  # noqa: PLC0415 (it imports torch)

    with closing(tarfile.open(fileobj=file, mode="r:")) as archive:
        for info in archive:
            archive.members = []  # type: ignore[attr-defined]  # otherwise it keeps all of them
            name = Path(info.name).as_posix()
            if not info.isreg() or info.issparse():
                rejected += [Rejection((tar / name).as_posix(), _NOT_A_FILE)] if not info.isdir() else []
            elif base_plus_ext(name)[0] is None:
                rejected.append(Rejection((tar / name).as_posix(), _NO_KEY))
            else:
                yield {"fname": name, "data": Member(name, info.offset_data, info.size), "__url__": tar}
        end = archive.offset
    file.seek(end)
    rest = file.read(_MOST_PADDING_BYTES)
    if not rest or rest.strip(b"\0") or file.read(1):
        raise tarfile.ReadError(f"its end mark is not at byte {end}, behind its last readable member")


def _is_image(extension: str) -> bool:
    return extension.rpartition(".")[2] in _IMAGES


def _content(file: BinaryIO, member: Member) -> bytes:
    if member.size_bytes > _MOST_TEXT_BYTES:
        raise BadJson(f"{member.name} has {member.size_bytes} bytes")
    return os.pread(file.fileno(), member.size_bytes, member.offset)


def _cell(value: object) -> str | list[str]:
    """Return a value of JSON as the text that a table would have."""
    if isinstance(value, list):
        return [text for item in value if isinstance(text := _cell(item), str)]
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return "" if value is None else str(value).strip()
