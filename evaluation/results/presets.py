"""The two presets, and the words of the options that change a task."""

from dataclasses import dataclass
from typing import Final, Literal

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
