"""Tasks: what a probe tells apart, as data. A task is one binary question, or several that share images and parts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from evaluation.results.presets import Balance, Uncertain
from sharding.datasets.chestxray14 import FINDINGS
from sharding.datasets.chexpert import OBSERVATIONS

Kind = Literal["binary", "multiclass", "multilabel"]
Unmentioned = Literal["ignore", "absent"]


@dataclass(frozen=True)
class Question:
    """A binary classification of images.

    Attributes:
        positive: label that makes an image positive when present
        negative: label that makes an image negative when present; None if the absence of `positive` does
        uncertain: meaning of an uncertain (-1) positive label: "ignore" leaves the image out, "zeros" makes it
            negative, "ones" positive (U-Ignore, U-Zeros and U-Ones of Irvin et al. 2019)
        unmentioned: meaning of a blank positive label: "ignore" leaves the image out, "absent" makes it negative
    """

    positive: str
    negative: str | None = None
    uncertain: Uncertain = "ignore"
    unmentioned: Unmentioned = "ignore"

    @property
    def negative_name(self) -> str:
        """Name of the negative class."""
        return self.negative or f"no {self.positive}"

    @property
    def labels(self) -> list[str]:
        """The labels that it reads."""
        return [self.positive, *([self.negative] if self.negative else [])]


@dataclass(frozen=True)
class Task:
    """A classification of the images of a set.

    Attributes:
        name: name in the tables
        kind: "binary" has one question; "multilabel" one for each label; "multiclass" one for each class against the
            other classes, which exclude each other
        questions: the questions, in the order of the tables
        balance: which parts hold equally many images of each class: "none", "development" (the test part stays as it
            is), "class" (both parts), or "view" (both parts, within each view); only "none" if the task is not binary
        test_splits: official splits that can be the test part; the first that a set has is
        names: groups of names that mean one label, which sets call otherwise; the first is the task's
    """

    name: str
    kind: Kind
    questions: tuple[Question, ...]
    balance: Balance = "none"
    test_splits: tuple[str, ...] = ("test",)
    names: tuple[tuple[str, ...], ...] = ()

    @property
    def labels(self) -> list[str]:
        """The labels that it reads, each once."""
        return list(dict.fromkeys(label for question in self.questions for label in question.labels))

    def missing_in(self, known: Collection[str]) -> list[str]:
        """Return the labels that are not among these known ones under any name."""
        others = {group[0]: group for group in self.names}
        return [label for label in self.labels if not any(name in known for name in others.get(label, (label,)))]

    def with_uncertain(self, policy: Uncertain | None) -> "Task":
        """Return the task with this meaning of every uncertain label; unchanged if it is None."""
        if policy is None:
            return self
        return replace(self, questions=tuple(replace(question, uncertain=policy) for question in self.questions))


def multilabel(
    name: str, labels: Sequence[str], *, unmentioned: Unmentioned = "ignore", test_splits: tuple[str, ...] = ("test",)
) -> Task:
    """Return the task that asks for each label whether it is present."""
    questions = tuple(Question(label, unmentioned=unmentioned) for label in labels)
    return Task(name, "multilabel", questions, test_splits=test_splits)


def _binary(name: str, positive: str, negative: str | None = None, balance: Balance = "none") -> Task:
    return Task(name, "binary", (Question(positive, negative),), balance)


# Five labels by which CheXpert's competition is scored (Irvin et al. 2019), and all fourteen. A label that a report
# does not mention counts as absent, as in that paper. The official test part came later than the set: the 234 images
# that radiologists labeled for validation are tested if it was not packed.
_CHEXPERT_FIVE: Final = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

# The first task of a dataset is the one that it has by default.
BUILT_IN: Final[dict[str, tuple[Task, ...]]] = {
    # The paper's five. Pneumonia against healthy; COVID-19 against healthy or against other pneumonia; never across
    # datasets (Gazda et al. 2021, section V).
    #
    # ChestX-ray14: the paper names "only patients with pneumonia and a matched number of healthy controls" (section
    # IV), but SEN, SPE, ACC and F1 of its Table III fix the share of pneumonia in its test part at 2.1 to 2.5 %
    # (`evaluation/results/paper.py`), which is that of all images. So only the development part was matched. Two
    # further tasks have healthy controls alone, matched in both parts; the last one also within each view, because the
    # view alone separates the classes.
    "cell": (_binary("cell", "PNEUMONIA", "NORMAL"),),
    "chestxray14": (
        _binary("chestxray14", "Pneumonia", balance="development"),
        _binary("chestxray14", "Pneumonia", "No Finding", "class"),
        _binary("chestxray14", "Pneumonia", "No Finding", "view"),
    ),
    "chexpert": (_binary("chexpert", "Pneumonia", "No Finding"),),
    "c19-cohen": (_binary("c19-cohen", "COVID-19", "other pneumonia"),),
    "covidgr": (_binary("covidgr", "COVID-19"),),
    "chexpert5": (multilabel("chexpert5", _CHEXPERT_FIVE, unmentioned="absent", test_splits=("test", "val")),),
    "chexpert14": (multilabel("chexpert14", OBSERVATIONS, unmentioned="absent", test_splits=("test", "val")),),
    "chestxray14-all": (multilabel("chestxray14-all", [name for name in FINDINGS if name != "No Finding"]),),
}
