"""Records in `results.json` of the backbones that were probed: those of a run, and those that it did not train."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EarlierTraining:
    """Weights that a run or another backbone descends from, or those of such a backbone itself.

    Attributes:
        weights: the file that the next run began with
        sha256: its hash
        epochs: epochs that these weights were trained for; None if Sternum did not train them
        shards: folders or URLs of the shards that they were trained on, without credentials
        data_identity: identity of these shards; None if Sternum did not train the weights
        compared: whether test images were compared with these shards
    """

    weights: str
    sha256: str
    epochs: float | None
    shards: list[str]
    data_identity: str | None
    compared: bool


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
        before: the weights that it descends from, the latest first; none if it began with random ones
        probed_px: side of the probed images; by default, as in results of older versions, that of the training images
    """

    backbone: str
    size_px: int
    global_batch: int
    fraction_percent: int
    epochs: float
    seed: int
    recipe: dict[str, Any] = field(default_factory=dict)
    before: list[EarlierTraining] = field(default_factory=list)
    probed_px: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "probed_px", self.probed_px or self.size_px)

    @property
    def sizes(self) -> str:
        """The size of the training images, and that of the probed ones if it differs."""
        return f"{self.size_px} px" + (f", probed at {self.probed_px} px" if self.probed_px != self.size_px else "")


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
        summary: what the file gave to the network: parts left out, counted and named; empty in older results
        antialias: whether images are reduced without aliasing
        trained_on: what an export states of its training data; empty for others, and in older results
        trainings: of a checkpoint of Sternum, its training and those before it, the latest first; empty for others, and
            in older results
    """

    name: str
    file: str
    network: str
    sha256: str
    size_px: int
    mean: list[float]
    std: list[float]
    summary: str = ""
    antialias: bool = False
    trained_on: str = ""
    trainings: list[EarlierTraining] = field(default_factory=list)
