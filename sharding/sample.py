"""One radiograph and what is known of it, before and after packing."""

from dataclasses import asdict, dataclass, field
from pathlib import Path


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

    def metadata(self) -> dict[str, object]:
        """Return what goes into the sample's JSON member: everything but the key."""
        values = asdict(self)
        del values["key"]
        return values | {"path": self.path.as_posix()}
