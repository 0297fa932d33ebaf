"""The weights that a run descends from, and the data that these were trained on."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Ancestor:
    """Weights that a run began with, or that the run which trained these began with.

    Attributes:
        weights: the file with them, where it was when the run began
        sha256: its hash
        epoch: epochs that they were trained for; None if Sternum did not train them
        data_identity: identity of the shards that they were trained on; None likewise
        shards: folders or URLs of these shards; empty if that is not known
        splits: the chosen official splits
        fraction_percent: the chosen percentage of the patients
    """

    weights: str
    sha256: str
    epoch: float | None = None
    data_identity: str | None = None
    shards: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    fraction_percent: int = 100
