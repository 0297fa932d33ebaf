"""Records of errors: `pictures/faults.json` holds error rates, and the test images that a probe called wrongly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from evaluation.results.picture_records import PicturedImage, read_pictures
from evaluation.results.scores import Estimate

FAULTS: Final = "faults.json"
FAULTS_VERSION: Final = 1

Part = Literal["development", "test", "neither"]


@dataclass(frozen=True)
class GroupErrors:
    """The errors on one group of test images; in a repeated cross-validation, of each time that an image is tested.

    Attributes:
        attribute: "sex", "age", "view" or "shorter side" of the image before packing; empty for all test images
        group: name of the group
        images: test images of the group
        patients: their patients
        positives: how many of the images are positive
        false_positives: negative images that are called positive
        false_negatives: positive images that are called negative
        false_positive_rate: share of the negative images, with its interval over patients; None without any
        false_negative_rate: share of the positive images, likewise
    """

    attribute: str
    group: str
    images: int
    patients: int
    positives: int
    false_positives: int
    false_negatives: int
    false_positive_rate: Estimate | None
    false_negative_rate: Estimate | None


@dataclass(frozen=True)
class ErrorRates:
    """Error rates of one feature set on one question.

    Attributes:
        dataset: label of the question in the tables
        preset: name of the preset
        features: name of the features in the tables
        groups: all test images, then each group of them
    """

    dataset: str
    preset: str
    features: str
    groups: list[GroupErrors]


@dataclass(frozen=True)
class RelatedImage:
    """An image beside a fault.

    Attributes:
        image: the image
        part: its part when the fault was tested
        score: probability of the positive class; None if the image is not tested
        threshold: a probability above it is called positive; None likewise
        cosine: of its features and those of the fault
    """

    image: PicturedImage
    part: Part
    score: float | None
    threshold: float | None
    cosine: float


@dataclass(frozen=True)
class Fault:
    """A test image that a probe called wrongly.

    Attributes:
        image: the image, with its right answer
        fold: number of the test part, as in predictions.csv
        score: probability of the positive class
        threshold: a probability above it is called positive
        shorter_side_px: of the image before packing; None if unknown
        nearest: the images with the most similar features among those that its classifier was fitted to, nearest first
        same_patient: other images of the patient
        same_picture: images that show the same picture, exactly or nearly, by the fingerprints of the audit
        more_of_patient: how many other images of the patient are not listed
        more_of_picture: how many images of the same picture are not listed
        map: name of the map in the folder, as in `AttentionMap`; empty if the network has none
    """

    image: PicturedImage
    fold: int
    score: float
    threshold: float
    shorter_side_px: int | None
    nearest: list[RelatedImage]
    same_patient: list[RelatedImage]
    same_picture: list[RelatedImage]
    more_of_patient: int
    more_of_picture: int
    map: str = ""


@dataclass(frozen=True)
class QuestionFaults:
    """The faults of one feature set on one question; in a repeated cross-validation, of the first test of each image.

    Attributes:
        dataset: label of the question in the tables
        preset: name of the preset
        features: name of the features in the tables
        positive: name of the positive class
        negative: name of the negative class
        tested: test images
        false_positives: how many negative ones are called positive
        false_negatives: how many positive ones are called negative
        most_confident: some of these: false positives, then false negatives, each from the score that is farthest from
            its threshold
    """

    dataset: str
    preset: str
    features: str
    positive: str
    negative: str
    tested: int
    false_positives: int
    false_negatives: int
    most_confident: list[Fault]


@dataclass(frozen=True)
class Faults:
    """The content of `faults.json`.

    Attributes:
        version: of this record
        rates: error rates of each question and preset
        questions: the faults of each question of the first task
    """

    version: int
    rates: list[ErrorRates]
    questions: list[QuestionFaults]


def read_faults(run: Path) -> Faults | None:
    """Read `run/pictures/faults.json`; None if there is none. Raises UserError if it cannot be read."""
    return read_pictures(run, FAULTS, FAULTS_VERSION, Faults)
