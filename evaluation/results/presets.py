"""The two presets, and the classification tasks of each built-in dataset."""

from dataclasses import dataclass
from typing import Final, Literal

from infra.errors import UserError

PresetName = Literal["gazda2021", "rigorous"]
Balance = Literal["none", "development", "class", "view"]
Split = Literal["official", "ignore"]
Uncertain = Literal["ignore", "zeros", "ones"]


@dataclass(frozen=True)
class Preset:
    """A protocol that fits, chooses and tests classifiers.

    Attributes:
        c_grid: values of C that the logistic regressions try
        max_iterations: most iterations of one logistic regression
        standardize: scale each feature to mean 0 and variance 1
        folds: folds of the cross-validation that chooses C
        crosses: without an official split, use each fifth of the patients as the test part once (nested
            cross-validation) instead of one fifth only
        groups_duplicates: treat near-identical images as images of one patient
        chooses_threshold: choose the threshold on validation by Youden's index instead of using 0.5
        one_standard_error: choose the smallest C whose mean validation AUC is within one standard error (over the
            folds) of the best, instead of the C with the best
        tests_every_c: also report the test AUC of every C, which is used for no choice
    """

    c_grid: tuple[float, ...]
    max_iterations: int
    standardize: bool
    folds: int
    crosses: bool
    groups_duplicates: bool
    chooses_threshold: bool
    one_standard_error: bool
    tests_every_c: bool


PRESETS: Final[dict[PresetName, Preset]] = {
    # Gazda et al. 2021, section V B; scikit-learn's defaults. Without an official split, the test part is 20 % and
    # the other 80 % form 8 folds. That is the paper's 70 / 10 / 20: each fit uses 70 % and is validated on 10 %.
    "gazda2021": Preset(
        c_grid=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
        max_iterations=100,
        standardize=False,
        folds=8,
        crosses=False,
        groups_duplicates=False,
        chooses_threshold=False,
        one_standard_error=False,
        tests_every_c=False,
    ),
    "rigorous": Preset(
        c_grid=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0),
        max_iterations=1000,
        standardize=True,
        folds=5,
        crosses=True,
        groups_duplicates=True,
        chooses_threshold=True,
        one_standard_error=True,
        tests_every_c=True,
    ),
}


@dataclass(frozen=True)
class Task:
    """A binary classification of the images of a dataset.

    Attributes:
        positive: label that makes an image positive when present
        negative: label that makes an image negative when present; None if the absence of `positive` does
        balance: which parts hold equally many images of each class: none, "development" (the test part stays as it
            is), "class" (both parts), or "view" (both parts, within each view)
    """

    positive: str
    negative: str | None = None
    balance: Balance = "none"

    @property
    def negative_name(self) -> str:
        """Name of the negative class."""
        return self.negative or f"no {self.positive}"


# The first task of a dataset is the paper's; further ones are rows of their own. Pneumonia against healthy; COVID-19
# against healthy or against other pneumonia; never across datasets (Gazda et al. 2021, section V).
#
# ChestX-ray14: the paper names "only patients with pneumonia and a matched number of healthy controls" (section IV),
# but SEN, SPE, ACC and F1 of its Table III fix the share of pneumonia in its test part at 2.1 to 2.5 %
# (`evaluation/results/paper.py`), which is that of all images. So only the development part was matched. Two further
# tasks have healthy controls alone, matched in both parts; the last one also within each view, because the view alone
# separates the classes.
TASKS: Final = {
    "cell": (Task("PNEUMONIA", "NORMAL"),),
    "chestxray14": (
        Task("Pneumonia", balance="development"),
        Task("Pneumonia", "No Finding", "class"),
        Task("Pneumonia", "No Finding", "view"),
    ),
    "chexpert": (Task("Pneumonia", "No Finding"),),
    "c19-cohen": (Task("COVID-19", "other pneumonia"),),
    "covidgr": (Task("COVID-19"),),
}


def tasks_of(dataset: str) -> tuple[Task, ...]:
    """Return the tasks of a dataset, the paper's first.

    Raises:
        UserError: if the dataset has none.
    """
    if dataset not in TASKS:
        raise UserError(f"dataset {dataset!r} has no task to probe; datasets with a task: {', '.join(sorted(TASKS))}")
    return TASKS[dataset]
