"""The two presets, and the task of each built-in dataset."""

from dataclasses import dataclass
from typing import Final, Literal

from infra.errors import UserError

PresetName = Literal["gazda2021", "rigorous"]


Balance = Literal["none", "class", "view"]


Uncertain = Literal["ignore", "zeros", "ones"]


@dataclass(frozen=True)
class Preset:
    """How classifiers are fitted, chosen and tested.

    c_grid, max_iterations, standardize: of the logistic regressions. folds: of the cross-validation that chooses C.
    crosses: without an official split, every fifth of the patients is the test part once (nested cross-validation)
    instead of one fifth only. groups_duplicates: near-identical images count as one patient's. chooses_threshold: on
    validation, by Youden's index, instead of 0.5.
    """

    c_grid: tuple[float, ...]
    max_iterations: int
    standardize: bool
    folds: int
    crosses: bool
    groups_duplicates: bool
    chooses_threshold: bool


PRESETS: Final[dict[PresetName, Preset]] = {
    # Gazda et al. 2021, section V B; scikit-learn's defaults. Without an official split, 8 folds of the 80 % that are
    # not tested on are its 70 / 10 / 20: each classifier is fitted to 70 % and validated on 10 %.
    "gazda2021": Preset(
        c_grid=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0),
        max_iterations=100,
        standardize=False,
        folds=8,
        crosses=False,
        groups_duplicates=False,
        chooses_threshold=False,
    ),
    "rigorous": Preset(
        c_grid=(1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        max_iterations=1000,
        standardize=True,
        folds=5,
        crosses=True,
        groups_duplicates=True,
        chooses_threshold=True,
    ),
}


@dataclass(frozen=True)
class Task:
    """Images with the label `positive` present against images with `negative` present, or with `positive` absent.

    balances: what the task is balanced by, one after the other, unless the user says.
    """

    positive: str
    negative: str | None = None
    balances: tuple[Balance, ...] = ("none",)

    @property
    def negative_name(self) -> str:
        """What the negative class is called."""
        return self.negative or f"no {self.positive}"


# Pneumonia against healthy, COVID-19 against none or against other pneumonia, never across datasets (Gazda et al. 2021,
# section V). ChestX-ray14 with "a matched number of healthy controls" (section IV), and a second time matched by view,
# which alone tells its classes apart.
TASKS: Final = {
    "cell": Task("PNEUMONIA", "NORMAL"),
    "chestxray14": Task("Pneumonia", "No Finding", ("class", "view")),
    "chexpert": Task("Pneumonia", "No Finding"),
    "c19-cohen": Task("COVID-19", "other pneumonia"),
    "covidgr": Task("COVID-19"),
}


def task_of(dataset: str) -> Task:
    """Return the task of a dataset; raises UserError where there is none."""
    if dataset not in TASKS:
        raise UserError(f"dataset {dataset!r} has no task to probe; those with one are {', '.join(sorted(TASKS))}")
    return TASKS[dataset]
