"""Records in `results.json` of the labeled sets: how each preset divides them, and what pretraining saw of them."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

OVERLAP_MARK: Final = "†"


class TaskKey(NamedTuple):
    """Identifies a task among the results: the label of its dataset and the name of its preset."""

    dataset: str
    preset: str


@dataclass(frozen=True)
class PartSize:
    """Images and patients in one part of a dataset, and images of each class.

    Attributes:
        images: number of images
        patients: number of patients
        positive: images of the positive class
        negative: images of the negative class
        groups: what the preset keeps on one side of a split, if not single patients: groups of patients who share a
            near-identical image; older results lack it and give these as patients
    """

    images: int
    patients: int
    positive: int
    negative: int
    groups: int | None = None


@dataclass(frozen=True)
class SeenPart:
    """Test images that pretraining saw, or whose pictures it saw, in one place.

    Attributes:
        place: set and split of the pretraining, such as "cell, test"
        positive: how many are positive
        negative: how many are negative
    """

    place: str
    positive: int
    negative: int


@dataclass(frozen=True)
class FittedSet:
    """The set that classifiers were fitted to, in an external validation.

    Attributes:
        label: name of the set in the tables
        name: name of its dataset
        folder: folder or URL of its shards, without credentials
        identity: hash of its packed images
        task: name of the task that it answers
        positive: name of its positive class
        negative: name of its negative class
        balance: how its classes are balanced, as in `Dataset`
    """

    label: str
    name: str
    folder: str
    identity: str
    task: str
    positive: str
    negative: str
    balance: str


@dataclass(frozen=True)
class Dataset:
    """A dataset as one preset divides it for a question of a task.

    Attributes:
        label: name in the tables; with the preset it identifies the rows
        preset: name of the preset
        name: name of the dataset
        folder: folder or URL of its shards, without credentials
        identity: hash of the packed images
        simulated: whether a program drew the images
        positive: name of the positive class
        negative: name of the negative class
        balance: none, development (classes balanced in that part), class (in both parts), or view (in both parts
            within each view)
        split: origin of the parts, such as "official"; "external" if the development part is of another set
        rounds: how many test parts there are; more than one in cross-validation, where every image is tested once, so
            that both `development` and `test` count the whole task
        development: images that classifiers may use
        test: images that are scored
        excluded: reason -> images left out
        pretrained_images: test images that pretraining saw, unlabeled, also as the same picture under another name;
            None if its shards are unavailable
        pretrained_patients: test patients that pretraining saw, unlabeled; None if its shards are unavailable
        pretrained_parts: these images by the place in which pretraining saw them
        pictures_compared: whether pictures were compared; None if unavailable, or in results of older versions, which
            compared only names
        not_square: images whose packed height and width differ, so that `probe_fit` matters; None in older results
        task: name of the task; empty in results of older versions
        question: the label that is asked for, one of several of the task; empty if the task has only this question
        uncertain: meaning of an uncertain positive label: ignore, zeros or ones
        unmentioned: meaning of a blank positive label: ignore or absent
        fitted_on: the other set that the development part is of, in an external validation
    """

    label: str
    preset: str
    name: str
    folder: str
    identity: str
    simulated: bool
    positive: str
    negative: str
    balance: str
    split: str
    rounds: int
    development: PartSize
    test: PartSize
    excluded: dict[str, int]
    pretrained_images: int | None
    pretrained_patients: int | None
    pretrained_parts: list[SeenPart] = field(default_factory=list)
    pictures_compared: bool | None = None
    not_square: int | None = None
    task: str = ""
    question: str = ""
    uncertain: str = "ignore"
    unmentioned: str = "ignore"
    fitted_on: FittedSet | None = None

    @property
    def key(self) -> TaskKey:
        """Key of the rows that score this task."""
        return TaskKey(self.label, self.preset)

    @property
    def task_label(self) -> str:
        """Name of the whole task in the tables: the label without the question."""
        return self.label.removesuffix(f": {self.question}") if self.question else self.label

    def class_name(self, code: int) -> str:
        """Return the name of a class: 1 positive, 0 negative."""
        return self.positive if code == 1 else self.negative

    @property
    def overlaps(self) -> bool:
        """Whether pretraining saw any of the test part."""
        return bool(self.pretrained_images or self.pretrained_patients)
