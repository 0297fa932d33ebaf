"""Records in `results.json` of scores: one for each row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from evaluation.results.datasets import TaskKey
from evaluation.results.scores import Calibration, Difference, Estimate, Gap, Scores, Subgroup

# The features or labels that a row scores. "checkpoint" is a checkpoint of the run, or without a run the first
# backbone, which stands in its place. "finetuned" is a network trained end to end. Controls: the "untrained" backbone,
# raw "pixels" and their "border", "attributes" such as the view, the age or the size of the source, labels "shuffled"
# within each part or "shuffled_over_all" patients, and "source": the dataset that an image is from; "initial" are the
# weights that the run began with, if not random ones. "compared" are weights that the run has nothing to do with.
ProbeKind = Literal[
    "checkpoint",
    "finetuned",
    "untrained",
    "pixels",
    "border",
    "attributes",
    "shuffled",
    "shuffled_over_all",
    "source",
    "initial",
    "compared",
]

# Kinds of the rows of a probe without a run that are no controls.
BACKBONES: Final = ("checkpoint", "compared")

AT_EDGE_MARK: Final = "*"


@dataclass(frozen=True)
class TriedC:
    """What one value of C reached, as means over the rounds.

    Attributes:
        c: the inverse strength of the regularization
        validation_auc: mean over the folds
        standard_error: of a round's `validation_auc`, over its folds
        test_auc: AUC of the test part, used for no choice; None if it was not measured
    """

    c: float
    validation_auc: float
    standard_error: float
    test_auc: float | None


@dataclass(frozen=True)
class Draw:
    """One draw of the weights of an untrained backbone.

    Attributes:
        seed: seed of the weights
        c: the chosen C of each round
        validation_auc: mean validation AUC at the chosen C
        scores: scores on the test part, without intervals
    """

    seed: int
    c: list[float]
    validation_auc: float
    scores: Scores


@dataclass(frozen=True)
class ProbeResult:
    """The scores of one feature set on one task: C chosen by validation AUC, one fit, one score on the test part.

    Attributes:
        dataset: label of the dataset
        preset: name of the preset
        features: name of the features in the tables
        kind: a checkpoint or one of the controls
        epoch: epoch of a checkpoint
        step: step of a checkpoint
        size: number of features
        c: the chosen C of each round
        at_edge: rounds whose C is an end of the grid
        threshold: decision threshold of each round
        validation_auc: mean validation AUC at the chosen C
        scores: scores on the test part
        knn_auc: AUC of the 20 nearest neighbors by cosine distance
        fits: logistic regressions fitted, by the search and for the final classifiers
        unconverged: how many of these did not converge
        calibration: only for the preset `rigorous`
        subgroups: only for the preset `rigorous`
        gaps: widest gap of each attribute, only for the preset `rigorous`
        c_path: every value of C; empty for a fine-tuned network, and in results of older versions
        draws: the draws of an untrained backbone; the other fields pool them, so that each score is their mean
        validation: validation_auc with its interval over the development patients; None in results of version 2
    """

    dataset: str
    preset: str
    features: str
    kind: ProbeKind
    epoch: float | None
    step: int | None
    size: int
    c: list[float]
    at_edge: int
    threshold: list[float]
    validation_auc: float
    scores: Scores
    knn_auc: float | None
    fits: int
    unconverged: int
    calibration: Calibration | None = None
    subgroups: list[Subgroup] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    c_path: list[TriedC] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    validation: Estimate | None = None

    @property
    def key(self) -> TaskKey:
        """Key of the task that the row scores."""
        return TaskKey(self.dataset, self.preset)


@dataclass(frozen=True)
class Comparison:
    """AUC of the last checkpoint (`features`) minus that of `other` features on the same test images.

    Attributes:
        dataset: label of the dataset
        preset: name of the preset
        features: name of the last checkpoint
        other: name of the other features
        difference: the difference; its interval and p-value are of this comparison alone
        p_holm: the p-value adjusted for all comparisons of the same dataset and preset; None without resamples, and in
            results of version 2
        delong: the same difference by DeLong's method, as a cross-check; None unless each patient has one test image
    """

    dataset: str
    preset: str
    features: str
    other: str
    difference: Difference
    p_holm: float | None = None
    delong: Difference | None = None

    @property
    def key(self) -> TaskKey:
        """Key of the task that both feature sets were scored on."""
        return TaskKey(self.dataset, self.preset)


@dataclass(frozen=True)
class FewLabels:
    """Test AUCs of probes fitted to the labels of only some development patients.

    Attributes:
        dataset: label of the dataset
        preset: name of the preset
        features: name of the features
        percent: share of the development patients
        images: mean number of labeled images over the draws
        aucs: one test AUC for each draw of patients
    """

    dataset: str
    preset: str
    features: str
    percent: int
    images: float
    aucs: list[float]

    @property
    def key(self) -> TaskKey:
        """Key of the task."""
        return TaskKey(self.dataset, self.preset)


@dataclass(frozen=True)
class Shift:
    """How well a classifier tells the official test part from the development part, among images of one class.

    Attributes:
        dataset: label of the dataset
        preset: name of the preset that divides it
        features: name of the features
        group: name of the class
        development: images of the development part
        test: images of the test part
        auc: AUC of the parts as upstream chose them; 0.5 if they are drawn alike
        null: AUC of as many patients drawn at random
    """

    dataset: str
    preset: str
    features: str
    group: str
    development: int
    test: int
    auc: Estimate
    null: Estimate

    @property
    def key(self) -> TaskKey:
        """Key of the task."""
        return TaskKey(self.dataset, self.preset)

    @property
    def is_shown(self) -> bool:
        """Whether the AUC is above the interval of its null."""
        return self.null.high is not None and self.auc.value > self.null.high


@dataclass(frozen=True)
class AttributeAuc:
    """How well one attribute alone, such as the age or the width of the source, tells the classes apart.

    Attributes:
        dataset: label of the dataset
        preset: name of the preset
        attribute: name of the attribute
        images: test images whose attribute is known; only these are ranked
        auc: test AUC of the attribute; development images decide whether more of it counts as positive
    """

    dataset: str
    preset: str
    attribute: str
    images: int
    auc: Estimate

    @property
    def key(self) -> TaskKey:
        """Key of the task."""
        return TaskKey(self.dataset, self.preset)


def last_checkpoint(rows: Sequence[ProbeResult]) -> ProbeResult | None:
    """Return the row to quote: the last checkpoint, not the one with the best test scores, which would flatter it.

    Without a run it is that of the first backbone.
    """
    return max((row for row in rows if row.kind == "checkpoint"), key=lambda row: row.step or 0, default=None)
