"""Records in `results.json`: all scores of a probe, and the notes that a reader needs before believing them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from evaluation.results.scores import Calibration, Difference, Estimate, Gap, Scores, Subgroup
from infra.errors import UserError
from infra.files import write_atomic
from infra.json_files import BadJson, encode_json, read_json

RESULTS_NAME: Final = "results.json"
# Version 3 added the methods of intervals and the p-values of comparisons; version 2 is still read, without these.
VERSION: Final = 3
_READABLE: Final = (2, VERSION)

# The features or labels that a row scores. "finetuned" is a network trained end to end. Controls: the "untrained"
# backbone, raw "pixels" and their "border", the "attributes" view, sex and age, "shuffled" labels, and "source": the
# dataset that an image is from.
ProbeKind = Literal["checkpoint", "finetuned", "untrained", "pixels", "border", "attributes", "shuffled", "source"]

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
    """

    backbone: str
    size_px: int
    global_batch: int
    fraction_percent: int
    epochs: float
    seed: int


@dataclass(frozen=True)
class PartSize:
    """Images and patients in one part of a dataset, and images of each class."""

    images: int
    patients: int
    positive: int
    negative: int


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
    """A dataset as one preset divides it.

    Attributes:
        label: name in the tables; with the preset it identifies the rows
        preset: name of the preset
        name: name of the dataset
        folder: folder or URL of its shards, without credentials
        identity: hash of the packed images
        simulated: whether a program drew the images
        positive: name of the positive class
        negative: name of the negative class
        balance: none, class, or view (classes balanced within each view)
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

    @property
    def key(self) -> TaskKey:
        """Key of the rows that score this task."""
        return TaskKey(self.label, self.preset)

    @property
    def overlaps(self) -> bool:
        """Whether pretraining saw any of the test part."""
        return bool(self.pretrained_images or self.pretrained_patients)


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
class Results:
    """The content of `results.json`."""

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

    def rows_of(self, dataset: Dataset) -> list[ProbeResult]:
        """Return the rows of one dataset and preset."""
        return [row for row in self.rows if row.key == dataset.key]

    def comparisons_of(self, dataset: Dataset) -> list[Comparison]:
        """Return the comparisons on one dataset and preset."""
        return [item for item in self.comparisons if item.key == dataset.key]

    def few_labels_of(self, dataset: Dataset) -> list[FewLabels]:
        """Return the results with few labels on one dataset and preset."""
        return [item for item in self.few_labels if item.key == dataset.key]


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
