"""One radiograph and what is known of it, before and after packing."""

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from infra.rng import stable_hash


def key_of_path(path: Path) -> str:
    """Return a sample key for a file of any name: what is legible of the name, then a hash of the whole path."""
    legible = re.sub(r"[^A-Za-z0-9]+", "-", path.stem)[:60].strip("-")
    return f"{legible}-{stable_hash(path.as_posix()):016x}".strip("-")


@dataclass(frozen=True)
class Sample:
    """What a dataset reader says of one image.

    key: unique in the dataset, letters, digits, `_` and `-` only; the name of the tar members.
    path: the image file, relative to the dataset's root.
    patient: identity of the patient within the dataset; never empty, since splits go by it.
    study: identity of the examination, where the dataset tells.
    view: `frontal-pa`, `frontal-ap`, `frontal` or `lateral`, where known.
    sex: `F`, `M`, or None. age: in years, or None.
    split: the official split (`train`, `val`, `test`), or None where the dataset has none.
    labels: name -> 1 present, 0 absent, -1 uncertain, None not mentioned.
    path_identifies: the path may tell who the patient is (as in a hospital's archive); it then stays out of the shard.
    """

    key: str
    path: Path
    patient: str
    study: str | None = None
    view: str | None = None
    sex: str | None = None
    age: float | None = None
    split: str | None = None
    labels: dict[str, int | None] = field(default_factory=dict)
    path_identifies: bool = False

    def metadata(self) -> dict[str, object]:
        """Return what goes into the sample's JSON member: everything but the key."""
        values = asdict(self)
        del values["key"], values["path_identifies"]
        return values | {"path": None if self.path_identifies else self.path.as_posix()}
