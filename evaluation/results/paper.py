"""Table III of the paper, and the published results that the paper compares itself with."""

from dataclasses import dataclass
from typing import Final

from evaluation.results.datasets import Dataset
from evaluation.results.presets import PresetName
from evaluation.results.tasks import BUILT_IN

PAPER: Final = (
    "Gazda, Gazda, Plavka, Drotar 2021: Self-supervised deep convolutional neural network for chest X-ray "
    "classification, Table III"
)
PRESET: Final[PresetName] = "gazda2021"  # the preset that follows the paper's protocol

_Percentages = tuple[float, float, float, float, float]

# Percent, by dataset and fraction of CheXpert used in pretraining, as printed: ACC, AUC, SEN, SPE, F1.
TABLE_III: Final[dict[str, dict[int, _Percentages]]] = {
    "cell": {
        1: (85.6, 96.6, 99.5, 62.4, 76.4),
        10: (86.9, 96.9, 99.2, 66.2, 79.1),
        100: (91.5, 97.7, 98.7, 79.5, 87.5),
    },
    "c19-cohen": {
        1: (84.9, 89.2, 90.6, 73.6, 76.5),
        10: (81.8, 91.5, 85.8, 73.6, 72.9),
        100: (81.1, 88.2, 83.0, 77.4, 73.2),
    },
    "covidgr": {
        1: (79.5, 86.6, 83.5, 75.6, 78.8),
        10: (77.8, 86.0, 80.0, 75.6, 77.4),
        100: (78.4, 87.1, 83.5, 73.3, 77.3),
    },
    "chestxray14": {
        1: (71.5, 79.1, 72.8, 71.4, 83.0),
        10: (71.2, 78.1, 72.0, 71.2, 82.9),
        100: (71.4, 78.4, 71.3, 71.5, 83.0),
    },
}

# The share of diseased images in the paper's test parts. With it, SEN and SPE give ACC and the F1 of the healthy class;
# only shares between these two give all figures of a dataset within their rounding. They are those of the official
# test parts of Cell (390 of 624 images) and ChestX-ray14 (555 of 25,596: pneumonia against everything else), and of a
# fifth of C19-Cohen and COVIDGR: whole numbers of images that round to Table III are 106 of 159 and 85 of 171.
DISEASED: Final = {
    "cell": (0.625, 0.628),
    "c19-cohen": (0.666, 0.668),
    "covidgr": (0.496, 0.499),
    "chestxray14": (0.021, 0.025),
}
_NEARLY: Final = 0.02  # changes the paper's ACC by at most 0.8 points, because its SEN and SPE differ by at most 37
_OFFICIAL_SPLITS: Final = ("cell", "chestxray14")  # datasets that the paper divides as upstream does


@dataclass(frozen=True)
class Published:
    """A result that the paper compares itself with.

    Attributes:
        acc: accuracy in percent as printed; None for "na"
        auc: AUC in percent as printed; None for "na"
        number: number of the reference in the paper; None if it has none
        reference: authors and year
        remark: the paper's comment on the result
    """

    acc: float | None
    auc: float | None
    number: int | None
    reference: str
    remark: str


# The paper's running text gives two different values: AUC 96.6 for Cell, ACC 76.18 for COVIDGR.
PUBLISHED: Final = {
    "cell": Published(92.8, 96.8, 42, "Kermany et al. 2018", ""),
    "c19-cohen": Published(None, None, None, "", "others combine the dataset with further ones, and it keeps growing"),
    "covidgr": Published(76.16, None, 19, "Tabik et al. 2020", ""),
    "chestxray14": Published(None, 65.8, 9, "Wang et al. 2017", "pneumonia as part of a multi-class classification"),
}


def in_paper(dataset: Dataset) -> bool:
    """Return whether Table III covers this task: real images, the same classes and balance, the same kind of split."""
    if dataset.simulated or dataset.fitted_on or dataset.name not in TABLE_III:
        return False
    if dataset.task not in ("", dataset.name):
        return False
    task = BUILT_IN[dataset.name][0]
    [question] = task.questions
    return (dataset.positive, dataset.negative, dataset.balance) == (
        question.positive,
        question.negative_name,
        task.balance,
    ) and (dataset.split == "official" or dataset.name not in _OFFICIAL_SPLITS)


def has_papers_share(dataset: Dataset) -> bool:
    """Return whether about as many test images are diseased as in the paper, so that ACC and F1 compare with it."""
    low, high = DISEASED[dataset.name]
    return low - _NEARLY <= dataset.test.positive / dataset.test.images <= high + _NEARLY


def share_note(dataset: Dataset, left_out: str) -> str:
    """Return why ACC and F1 are left out; `left_out` says of whom."""
    low, high = (f"{100 * share:.1f}" for share in DISEASED[dataset.name])
    share = 100 * dataset.test.positive / dataset.test.images
    return (
        f"{dataset.label}: ACC and F1 {left_out} are left out, because they depend on the share of diseased images: "
        f"{share:.1f} % in our test part, {low} to {high} % in the paper's."
    )
