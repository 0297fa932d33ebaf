"""Records in `compare.json`: recipes and the differences between them."""

from dataclasses import dataclass
from typing import Literal

from evaluation.results.scores import Difference, Estimate

VERSION = 1

Subject = Literal["these weights", "this recipe"]


@dataclass(frozen=True)
class RecipeScore:
    """The AUC of a recipe on one task.

    Attributes:
        dataset: label of the labeled set; empty for files of other programs alone
        preset: name of the preset; empty for files of other programs alone
        recipe: its name
        features: the probed features of each of its runs; empty for a file of another program
        aucs: the AUC of each of its runs
        auc: their mean; with several runs, the interval is over patients and seeds, else over patients
        sd: standard deviation over the runs; None for a single one
    """

    dataset: str
    preset: str
    recipe: str
    features: list[str]
    aucs: list[float]
    auc: Estimate
    sd: float | None


@dataclass(frozen=True)
class RecipeDifference:
    """The mean AUC of one recipe minus that of another on the same images.

    Attributes:
        dataset: label of the labeled set
        preset: name of the preset
        recipe: name of one recipe
        other: name of the other
        difference: the difference, with interval and p-value of this comparison alone
        p_holm: the p-value adjusted for all comparisons of the table
        about: "these weights" if a recipe has only one run; its other seeds may do better or worse
        verdict: "better", "worse" or "not shown to differ" by the adjusted p-value at 5 %; empty without resamples
    """

    dataset: str
    preset: str
    recipe: str
    other: str
    difference: Difference
    p_holm: float | None
    about: Subject
    verdict: str


@dataclass(frozen=True)
class RecipeComparison:
    """The content of `compare.json`.

    Attributes:
        version: version of the file
        sternum: version of the program
        command: the command line
        images: number of test images of each labeled set, in their order
        patients: number of test patients, or groups of patients with a common image, of each labeled set
        scores: each recipe on each labeled set
        differences: all pairs of recipes on each labeled set
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """

    version: int
    sternum: str
    command: str
    images: dict[str, int]
    patients: dict[str, int]
    scores: list[RecipeScore]
    differences: list[RecipeDifference]
    resamples: int
    seed: int
