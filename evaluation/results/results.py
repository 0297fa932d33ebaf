"""`results.json` of a run: all that a probe found, with what a reader has to know before believing it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from infra.errors import UserError
from infra.files import write_atomic

NAME: Final = "results.json"
VERSION: Final = 2

Kind = Literal["checkpoint", "finetuned", "untrained", "pixels", "border", "attributes", "shuffled", "source"]


OVERLAP_MARK: Final = "†"
AT_EDGE_MARK: Final = "*"


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, None where no resamples were asked for or they cannot tell one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """All between 0 and 1; the disease is the positive class, and f1_negative is the F1 of the healthy one."""

    acc: Estimate
    auc: Estimate
    sen: Estimate
    spe: Estimate
    f1: Estimate
    f1_negative: Estimate


@dataclass(frozen=True)
class Bin:
    """Images of like probability: the mean of it, the share of positives among them, and how many there are."""

    predicted: float
    observed: float
    images: int


@dataclass(frozen=True)
class Calibration:
    """Brier scores (0 is best) and reliability curves of the test part, as predicted and after Platt scaling.

    brier_prevalence: of always saying the share of positives of the test part.
    """

    brier: float
    brier_recalibrated: float
    brier_prevalence: float
    bins: list[Bin]
    bins_recalibrated: list[Bin]


@dataclass(frozen=True)
class Subgroup:
    """The test images of one group, such as sex "F"; scores are None where it is too small to be scored."""

    attribute: str
    group: str
    images: int
    patients: int
    positive: int
    auc: Estimate | None
    sen: Estimate | None
    spe: Estimate | None


@dataclass(frozen=True)
class Gap:
    """The largest difference of AUC between two groups of an attribute.

    The interval is that of the difference between these two. They were chosen as the most extreme pair, so it is no
    test of whether any difference exists: among equal groups the widest gap tends to look like one.
    """

    attribute: str
    highest: str
    lowest: str
    auc: Estimate


@dataclass(frozen=True)
class Run:
    """What was pretrained. fraction_percent: of the pretraining set; epochs: done at the last checkpoint probed."""

    backbone: str
    size_px: int
    global_batch: int
    fraction_percent: int
    epochs: float
    seed: int


@dataclass(frozen=True)
class PartSize:
    """How many images and patients a part of a dataset holds, and of which class."""

    images: int
    patients: int
    positive: int
    negative: int


@dataclass(frozen=True)
class Dataset:
    """What was probed by which preset.

    label: names it in the rows; `dataset`, `preset` and this are the key of a row. balance: none, class, or class and
    view. split: how the parts came about. development and test: in cross-validation (`rounds` > 1) every image is once
    in the test part, so both are the whole. excluded: reason -> images left out. The last two count test images and
    test patients seen, unlabelled, in pretraining; None when the shards of the pretraining are not there to compare.
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

    @property
    def overlaps(self) -> bool:
        """Whether pretraining saw any of the test part."""
        return bool(self.pretrained_images or self.pretrained_patients)


@dataclass(frozen=True)
class ProbeResult:
    """One feature set on one dataset by one preset: C by validation AUC, one fit, one score on the test part.

    features: what a reader calls it; epoch and step: of a checkpoint. c, threshold: one a round. at_edge: rounds whose
    C is an end of the grid. knn_auc: of the 20 nearest neighbours by cosine. calibration, subgroups: `rigorous` only.
    fits and unconverged count logistic regressions: those of the search and the last ones.
    """

    dataset: str
    preset: str
    features: str
    kind: Kind
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


@dataclass(frozen=True)
class Comparison:
    """The AUC of the last checkpoint less that of other features on the same test images, patients drawn in pairs."""

    dataset: str
    preset: str
    features: str
    other: str
    difference: Estimate


@dataclass(frozen=True)
class FewLabels:
    """The test AUC of probes that saw the labels of some development patients only; `aucs`: one a draw of them."""

    dataset: str
    preset: str
    features: str
    percent: int
    images: float
    aucs: list[float]


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
        return [row for row in self.rows if (row.dataset, row.preset) == (dataset.label, dataset.preset)]


def write_results(run: Path, results: Results) -> None:
    """Write `run/results.json` atomically."""
    write_atomic(run / NAME, msgspec.json.format(msgspec.json.encode(results), indent=1))


def read_results(run: Path) -> Results | None:
    """Read `run/results.json`; None where the run has not been probed, UserError when it is not one of ours."""
    path = run / NAME
    if not path.exists():
        return None
    try:
        version = msgspec.json.decode(path.read_bytes(), type=_Version).version
        if version != VERSION:
            raise UserError(f"{path} has version {version}, this Sternum reads {VERSION}; probe the run again")
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}; probe the run again") from error


@dataclass(frozen=True)
class _Version:
    version: int


def last_checkpoint(rows: Sequence[ProbeResult]) -> ProbeResult | None:
    """The row to quote: of the last checkpoint, not of the best one, which its test scores would flatter."""
    return max((row for row in rows if row.kind == "checkpoint"), key=lambda row: row.step or 0, default=None)
