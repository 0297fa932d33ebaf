"""A radiograph's file and metadata, as readers find them and shards store them."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from infra.rng import stable_hash


def key_of_path(path: Path) -> str:
    """Return a sample key for a file of any name: the legible part of the name, then a hash of the whole path."""
    legible = re.sub(r"[^A-Za-z0-9]+", "-", path.stem)[:60].strip("-")
    return f"{legible}-{stable_hash(path.as_posix()):016x}".strip("-")


class SampleMetadata(TypedDict):
    """The JSON member of a sample, with the meaning of `Sample`; the size is that of the source, upright, in pixels."""

    patient: str
    study: str | None
    view: str | None
    sex: str | None
    age: float | None
    split: str | None
    labels: dict[str, int | None]
    path: NotRequired[str | None]
    instance: NotRequired[str]
    day: NotRequired[int]
    source_height: NotRequired[int]
    source_width: NotRequired[int]


@dataclass(frozen=True)
class Sample:
    """One image of a dataset with its metadata.

    Attributes:
        key: unique in the dataset, only letters, digits, `_` and `-`; the name of the tar members
        path: the image file, relative to the dataset's root
        patient: the patient's identity in the dataset; never empty, since fractions are made of patients
        study: the examination's identity, None if unknown
        view: `frontal-pa`, `frontal-ap`, `frontal` or `lateral`, None if unknown
        sex: `F` or `M`, None if unknown
        age: in years, None if unknown
        split: the official split (`train`, `val`, `test`), None if the dataset has none
        labels: name -> 1 present, 0 absent, -1 uncertain, None not mentioned
        path_identifies: whether the path may identify the patient, as in a hospital's archive; then it stays out of
            the shard
        instance: the pseudonym of the file's SOPInstanceUID, None if it is no DICOM file of a DICOM set
        member: for an image inside a tar, the tar relative to the root, and the image's offset and size in bytes there
        day: day of the examination on a scale of the patient's own, of which only differences mean something; None if
            unknown
    """

    key: str
    path: Path
    patient: str
    study: str | None = None
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    split: str | None = None
    labels: dict[str, int | None] = field(default_factory=dict)
    path_identifies: bool = False
    instance: str | None = None
    member: tuple[str, int, int] | None = None
    day: int | None = None

    @property
    def file(self) -> Path:
        """The file with the image, relative to the root: `path`, or the tar that holds it."""
        return self.path if self.member is None else Path(self.member[0])

    def metadata(self) -> dict[str, object]:
        """Return the content of the sample's JSON member: everything but the key."""
        values = asdict(self)
        del values["key"], values["path_identifies"], values["member"]
        for name in ("instance", "day"):  # added later: older shards hold neither
            if values[name] is None:
                del values[name]
        return values | {"path": None if self.path_identifies else self.path.as_posix()}
