"""The findings of an audit: who and what is in several packed folders or official splits, and where."""

from dataclasses import dataclass
from typing import Final

# The spread of a patient or a picture. All but the first are leaks.
WITHIN: Final = "within one split"
SPLITS: Final = "across splits"
SETS: Final = "across sets"
SPREADS: Final = (WITHIN, SPLITS, SETS)

LabelPair = tuple[str, str]


@dataclass(frozen=True)
class AuditedFolder:
    """A packed folder.

    Attributes:
        path: as the user named it
        dataset: the dataset's name
        name: the set's name
        images: the number of images
        patients: the number of patients
        splits: images of each official split, `no split` for a dataset without splits
    """

    path: str
    dataset: str
    name: str
    images: int
    patients: int
    splits: dict[str, int]


@dataclass(frozen=True)
class PatientLocation:
    """A folder and split that a patient is in, with the number of the patient's images there."""

    folder: str
    split: str | None
    images: int


@dataclass(frozen=True)
class SharedPatient:
    """A patient who is in several folders, or in several official splits of one."""

    spread: str
    dataset: str
    patient: str
    places: list[PatientLocation]


@dataclass(frozen=True)
class TwoClassPatient:
    """A patient with images of labels that exclude each other; `labels` has every such pair."""

    dataset: str
    patient: str
    labels: list[LabelPair]


@dataclass(frozen=True)
class AuditedImage:
    """An image in a group.

    Attributes:
        number: its position in the packed order of all audited folders
        folder: its folder
        name: name of its set
        split: its official split
        shard: name of its shard
        key: its key
        path: its file, relative to the dataset's root; None if the shards do not hold it, because it may name a patient
        patient: its patient
        stays: whether it stays if copies are left out: it is in the folder that was named first, there in train rather
            than val rather than test, and there it has the first key
    """

    number: int
    folder: str
    name: str
    split: str | None
    shard: str
    key: str
    path: str | None
    patient: str
    stays: bool


@dataclass(frozen=True)
class Pair:
    """Two images of a group.

    Attributes:
        first: index of an image in the group
        second: index of another image in the group
        equal_bytes: whether the encoded images are equal
        distance: the number of bits in which their hashes differ
        correlation: correlation of their thumbnails, at most 1
        center: whether distance and correlation are those of the center squares, not of the whole images
    """

    first: int
    second: int
    equal_bytes: bool
    distance: int
    correlation: float
    center: bool


@dataclass(frozen=True)
class ImageGroup:
    """Images that show the same picture, and the pairs that connect them."""

    spread: str
    images: list[AuditedImage]
    pairs: list[Pair]


@dataclass(frozen=True)
class Audit:
    """The findings of an audit, the widest spread first, then in packed order.

    Attributes:
        folders: the audited folders
        max_hash_distance: the largest distance of a near pair, in bits
        min_correlation: the smallest correlation of a near pair
        shared_patients: patients in several folders or splits
        two_class_patients: patients with labels that exclude each other
        identical: groups of images with equal bytes, each image paired with the first
        near_identical: groups that near pairs connect. They include the identical copies of their images, of which
            only the first is paired with near ones.
    """

    folders: list[AuditedFolder]
    max_hash_distance: int
    min_correlation: float
    shared_patients: list[SharedPatient]
    two_class_patients: list[TwoClassPatient]
    identical: list[ImageGroup]
    near_identical: list[ImageGroup]
