"""What a packing lacks: the splits, classes and files that the dataset names and the shards do not hold."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from sharding.format.sample import Sample
from sharding.images.encode import MISSING

_MOST_MISSING_PERCENT: Final = 1  # few lost files are normal; more mean a part that was not copied or unpacked


def missing_files(root: Path, samples: Iterable[Sample]) -> dict[str, str]:
    """Return MISSING by the path of each sample whose file is not below `root`; no file is opened."""
    return {sample.path.as_posix(): MISSING for sample in samples if _is_missing(root / sample.path)}


def _is_missing(path: Path) -> bool:
    try:
        return not path.exists()
    except OSError:  # such as a folder that may not be read; reading the file will say so
        return False


def gaps(samples: Iterable[Sample], rejected: Mapping[str, str]) -> list[str]:
    """Name each split and class of which no image is left, and the missing files if they are more than 1 %.

    Args:
        samples: all samples of the dataset
        rejected: the reason by the path of each sample that is not packed
    """
    if not rejected:
        return []
    named: Counter[str] = Counter()
    left: Counter[str] = Counter()
    count = missing = 0
    for sample in samples:
        reason = rejected.get(sample.path.as_posix())
        count += 1
        missing += reason == MISSING
        groups = [f"class {name!r}" for name, label in sample.labels.items() if label == 1]
        if sample.split is not None:
            groups.append(f"split {sample.split}")
        named.update(groups)
        if reason is None:
            left.update(groups)
    lost = [
        f"the only image of {group}" if named[group] == 1 else f"all {named[group]} images of {group}"
        for group in sorted(named.keys() - left.keys())
    ]
    if missing * 100 > count * _MOST_MISSING_PERCENT:
        lost.append(f"{missing} of {count} files")
    return lost
