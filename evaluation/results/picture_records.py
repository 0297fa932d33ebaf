"""Records of pictures: `RUN/pictures/` holds radiographs of a probe's test part, and a JSON file for each kind of them.

A probe writes the folder as a whole after `results.json`, and removes it before, so it always belongs to the results
beside it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from evaluation.results.scores import Estimate
from infra.errors import UserError, require
from infra.storage.files import write_atomic
from infra.storage.json_files import BadJson, encode_json, read_json

FOLDER: Final = "pictures"
LONGEST_SIDE_PX: Final = 320
ATTENTION: Final = "attention.json"
ATTENTION_VERSION: Final = 1


@dataclass(frozen=True)
class PicturedImage:
    """An image of a labeled set, and its file.

    Attributes:
        dataset: label of the set in the tables
        split: official split; None if the set has none
        key: key of the image in its set
        patient: identity of the patient, 16 hexadecimal digits as in predictions.csv
        label: 1 if the image shows the positive class of the question, else 0; None if it does not answer the question
        view: projection; None if unknown, like sex and age
        sex: F or M
        age: in years
        file: name of its gray JPEG in the folder: a square as the probe frames the image, at most 320 px wide
    """

    dataset: str
    split: str | None
    key: str
    patient: str
    label: int | None
    view: str | None
    sex: str | None
    age: float | None
    file: str


@dataclass(frozen=True)
class AttentionMap:
    """Where an image holds the evidence for a probe's decision.

    Attributes:
        image: the image
        score: probability of the positive class
        threshold: a probability above it is called positive
        file: name of the map in the folder, a gray JPEG of the size of the image's. White is the strongest evidence in
            this image for the class that the probe decided on, black is none or evidence against it
        outside: share of the map outside of the lungs' usual place, as in `OutsideShare`; None if the map is empty
    """

    image: PicturedImage
    score: float
    threshold: float
    file: str
    outside: float | None

    @property
    def is_positive(self) -> bool:
        """The decision."""
        return self.score > self.threshold


@dataclass(frozen=True)
class Randomized:
    """How alike maps are before and after weights became random (Adebayo et al. 2018); 1 is equal.

    Attributes:
        weights: which weights are random, in words
        images: images whose maps were compared; one whose map is the same everywhere is left out
        rank_correlation: mean Spearman correlation of the cells of both maps; None without images
        ssim: mean structural similarity of both maps as pictures, likewise
    """

    weights: str
    images: int
    rank_correlation: Estimate | None
    ssim: Estimate | None


@dataclass(frozen=True)
class OutsideShare:
    """Share of the attention that lies near the border and in the corners of the film, where there is no lung.

    Attributes:
        features: name of the features in the tables
        images: test images with a map that is not empty
        empty: test images with an empty map, which are left out
        share: mean share of the maps outside; None without images
        uniform: the share that equal attention everywhere would have
    """

    features: str
    images: int
    empty: int
    share: Estimate | None
    uniform: float


@dataclass(frozen=True)
class Attention:
    """The content of `attention.json`.

    Attributes:
        version: of this record
        dataset: label of the question in the tables
        preset: name of the preset
        features: name of the features in the tables
        positive: name of the positive class
        negative: name of the negative class
        left_out: why there are no maps, as a sentence without its full stop; then all that follows is empty
        method: how the maps were made, as a sentence
        cells: height and width of a map before it was enlarged
        choice: how the images were chosen, as a sentence
        maps: correct positives, then correct negatives
        randomized: similarity of maps as more and more weights become random; first that of maps of different images, a
            scale for the others
        outside: attention outside of the lungs' usual place: of the probed backbone, then of an untrained one
        outside_region: what counts as outside, and which images were measured, as a sentence
    """

    version: int
    dataset: str
    preset: str
    features: str
    positive: str
    negative: str
    left_out: str = ""
    method: str = ""
    cells: list[int] = field(default_factory=list)
    choice: str = ""
    maps: list[AttentionMap] = field(default_factory=list)
    randomized: list[Randomized] = field(default_factory=list)
    outside: list[OutsideShare] = field(default_factory=list)
    outside_region: str = ""


def read_attention(run: Path) -> Attention | None:
    """Read `run/pictures/attention.json`; None if there is none. Raises UserError if it cannot be read."""
    return read_pictures(run, ATTENTION, ATTENTION_VERSION, Attention)


@dataclass(frozen=True)
class _Version:
    version: int


T = TypeVar("T")


def read_pictures(run: Path, name: str, version: int, expected: type[T]) -> T | None:
    """Read the record of one kind of picture.

    Args:
        run: folder of the results
        name: name of the file in the folder of pictures
        version: the version that is read
        expected: type of the record

    Returns:
        The record, None if the results have no such pictures.

    Raises:
        UserError: if the file is damaged or of another version
    """
    path = run / FOLDER / name
    try:
        found = read_json(path, _Version).version
        require(found == version, f"{path} has version {found}, this Sternum reads {version}; probe the run again")
        return read_json(path, expected)
    except FileNotFoundError:
        return None
    except BadJson as error:
        raise UserError(f"{path} cannot be read: {error}; probe the run again") from error


def write_pictures_record(folder: Path, name: str, record: object) -> None:
    """Write the record of one kind of picture into a folder of pictures that is not finished."""
    write_atomic(folder / name, encode_json(record))
