"""The copies that an audit lists in `audit.json`, to leave them out of a packing or a probe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.errors import UserError, require
from infra.storage.json_files import BadJson, read_json

COPY: Final = "copy of another image by the list of an audit"


@dataclass(frozen=True)
class _Folder:
    name: str


@dataclass(frozen=True)
class _Image:
    name: str
    key: str
    stays: bool


@dataclass(frozen=True)
class _Group:
    images: list[_Image]


@dataclass(frozen=True)
class _Audit:
    """What is needed of `sharding.auditing.audit.Audit`."""

    folders: list[_Folder]
    identical: list[_Group]
    near_identical: list[_Group]


def read_copies(path: Path, name: str) -> frozenset[str]:
    """Return the keys of the images of a set that do not stay.

    Args:
        path: the `audit.json` that `sternum audit` wrote
        name: the set's name

    Raises:
        UserError: if the file is not such a list, or the audit did not cover the set
    """
    try:
        audit = read_json(path, _Audit)
    except FileNotFoundError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name the audit.json of an audit") from error
    except BadJson as error:
        raise UserError(f"{path} is not a list of this version: {error}; write it again: sternum audit") from error
    names = sorted({folder.name for folder in audit.folders})
    require(
        name in names,
        f"{path} covers {', '.join(names) or 'no set'} and not the set {name}; audit it first: sternum audit",
    )
    groups = (*audit.identical, *audit.near_identical)
    return frozenset(image.key for group in groups for image in group.images if image.name == name and not image.stays)
