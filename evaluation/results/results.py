"""Records in `results.json`: all scores of a probe, and the notes that a reader needs before believing them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from evaluation.results.scores import Calibration, Difference, Estimate, Gap, Scores, Subgroup
from evaluation.results.task_scores import TaskScores
from infra.errors import UserError
from infra.files import write_atomic
from infra.json_files import BadJson, encode_json, read_json

RESULTS_NAME: Final = "results.json"
# Version 3 added the methods of intervals and the p-values of comparisons; version 2 is still read, without these.
VERSION: Final = 3
_READABLE: Final = (2, VERSION)

# The features or labels that a row scores. "finetuned" is a network trained end to end. Controls: the "untrained"
# backbone, raw "pixels" and their "border", "attributes" such as the view, the age or the size of the source, labels
# "shuffled" within each part or "shuffled_over_all" patients, and "source": the dataset that an image is from;
# "initial" are the weights that the run began with, if not random ones. "compared" are weights that the run has nothing
# to do with.
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

OVERLAP_MARK: Final = "†"
AT_EDGE_MARK: Final = "*"


class TaskKey(NamedTuple):
    """Identifies a task among the results: the label of its dataset and the name of its preset."""

    dataset: str
    preset: str


@dataclass(frozen=True)
class Run:
    """The pretraining run that was probed.

    Attributes:
        backbone: name of the architecture
        size_px: side of the training images
        global_batch: images per step over all ranks
        fraction_percent: share of the pretraining set
        epochs: epochs done at the last checkpoint probed
        seed: seed of the pretraining
        recipe: every setting that decides what the pretraining computes, but the seed, and the identity of its shards;
            empty in results of older versions
    """

    backbone: str
    size_px: int
    global_batch: int
    fraction_percent: int
    epochs: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OutsideBackbone:
    """A backbone that the run did not train.

    Attributes:
        name: name of its rows
        file: the file with the weights
        network: name of the architecture
        sha256: hash of the file
        size_px: sides of its images
        mean: of each channel, on the scale 0 to 1
        std: likewise
    """

    name: str
    file: str
    network: str
    sha256: str
    size_px: int
    mean: list[float]
    std: list[float]


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
        split: origin of the parts, such as "official"
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

    @property
    def key(self) -> TaskKey:
        """Key of the rows that score this task."""
        return TaskKey(self.label, self.preset)

    @property
    def overlaps(self) -> bool:
        """Whether pretraining saw any of the test part."""
        return bool(self.pretrained_images or self.pretrained_patients)


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


@dataclass(frozen=True)
class PredictionsFile:
    """The file beside `results.json` with the predictions for each test image: its name, lines and SHA-256."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Results:
    """The content of `results.json`; `predictions` is None in results of older versions."""

    version: int
    sternum: str
    command: str
    run: Run
    config: dict[str, Any]
    protocol: dict[str, dict[str, Any]]
    datasets: list[Dataset]
    rows: list[ProbeResult]
    comparisons: list[Comparison]
    few_labels: list[FewLabels]
    timing: dict[str, float]
    notes: list[str]
    tasks: list[TaskScores] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    predictions: PredictionsFile | None = None
    outside: list[OutsideBackbone] = field(default_factory=list)
    attribute_aucs: list[AttributeAuc] = field(default_factory=list)

    @property
    def single(self) -> list[Dataset]:
        """The datasets of tasks with one question; the others are parts of `tasks`."""
        return [dataset for dataset in self.datasets if not dataset.question]

    def questions_of(self, task: TaskScores) -> list[Dataset]:
        """Return the dataset of each label of a task."""
        by_key = {dataset.key: dataset for dataset in self.datasets}
        return [by_key[TaskKey(label, task.preset)] for label in task.datasets]

    def rows_of(self, dataset: Dataset) -> list[ProbeResult]:
        """Return the rows of one dataset and preset."""
        return [row for row in self.rows if row.key == dataset.key]

    def comparisons_of(self, dataset: Dataset | TaskScores) -> list[Comparison]:
        """Return the comparisons on one dataset and preset, or of the mean AUCs of a task."""
        return [item for item in self.comparisons if item.key == (dataset.label, dataset.preset)]

    def few_labels_of(self, dataset: Dataset) -> list[FewLabels]:
        """Return the results with few labels on one dataset and preset."""
        return [item for item in self.few_labels if item.key == dataset.key]

    def shifts_of(self, dataset: Dataset) -> list[Shift]:
        """Return the shifts between the parts of one dataset and preset."""
        return [item for item in self.shifts if item.key == dataset.key]

    def attribute_aucs_of(self, dataset: Dataset) -> list[AttributeAuc]:
        """Return the AUCs of single attributes on one dataset and preset."""
        return [item for item in self.attribute_aucs if item.key == dataset.key]


def write_results(run: Path, results: Results) -> None:
    """Write `run/results.json` atomically."""
    write_atomic(run / RESULTS_NAME, encode_json(results))


def read_results(run: Path) -> Results | None:
    """Read `run/results.json`.

    Returns:
        The results, None if the run has not been probed.

    Raises:
        UserError: if the file is unreadable, or of a version before 2 or after this one.
    """
    path = run / RESULTS_NAME
    try:
        version = read_json(path, _Version).version
        if version not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            raise UserError(f"{path} has version {version}, this Sternum reads {readable}; probe the run again")
        return read_json(path, Results)
    except FileNotFoundError:
        return None
    except BadJson as error:
        raise UserError(f"{path} cannot be read: {error}; probe the run again") from error


@dataclass(frozen=True)
class _Version:
    version: int


def last_checkpoint(rows: Sequence[ProbeResult]) -> ProbeResult | None:
    """Return the row to quote: the last checkpoint, not the one with the best test scores, which would flatter it."""
    return max((row for row in rows if row.kind == "checkpoint"), key=lambda row: row.step or 0, default=None)
