"""Records of tasks with several labels: means over the labels, and classes against each other."""

from dataclasses import dataclass

from evaluation.results.scores import Estimate


@dataclass(frozen=True)
class MeanRow:
    """Scores of one feature set over all labels of a task.

    Attributes:
        features: name of the features in the tables
        kind: a checkpoint or one of the controls, as in the rows of the labels
        step: step of a checkpoint
        auc: mean AUC over the labels
        ap: mean average precision over the labels
        balanced_accuracy: of classes, the mean share of a class's images that are assigned to it, where an image is
            assigned to the class with the highest probability; None for other tasks
        confusion: of classes, how many images of each class (rows) are assigned to each class (columns)
    """

    features: str
    kind: str
    step: int | None
    auc: Estimate
    ap: Estimate
    balanced_accuracy: Estimate | None = None
    confusion: list[list[int]] | None = None


@dataclass(frozen=True)
class TaskOverlap:
    """What pretraining saw of the test images of a task, each counted once however many labels it is tested for.

    Attributes:
        images: test images that pretraining saw, unlabeled, also as the same picture under another name
        patients: test patients that pretraining saw, unlabeled
        places: these images by the place in which pretraining saw them, such as "cell, test"
    """

    images: int
    patients: int
    places: dict[str, int]


@dataclass(frozen=True)
class TaskScores:
    """A task with several labels by one preset.

    Attributes:
        label: name in the tables; with the preset it identifies the task
        preset: name of the preset
        kind: multilabel, or multiclass
        labels: the labels that are scored
        datasets: for each label, the label of its dataset, which identifies its rows
        left_out: label that is not scored and takes no part in the means -> the reason
        split: origin of the parts, such as "official"
        images: test images that are scored for any label
        patients: their patients
        overlaps: whether pretraining saw any of the test part
        rows: the scores of each feature set
        overlap: what pretraining saw of the test images; None if its shards are unavailable, and in older results
    """

    label: str
    preset: str
    kind: str
    labels: list[str]
    datasets: list[str]
    left_out: dict[str, str]
    split: str
    images: int
    patients: int
    overlaps: bool
    rows: list[MeanRow]
    overlap: TaskOverlap | None = None

    @property
    def last(self) -> MeanRow | None:
        """The row to quote: that of the last checkpoint."""
        return max((row for row in self.rows if row.kind == "checkpoint"), key=lambda row: row.step or 0, default=None)
