"""What a packing lacks: the splits, classes and files that the dataset names and the shards do not hold."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from infra.configuration.options import key, setting
from infra.errors import RunFailed, UserError
from infra.log import progress
from sharding.datasets.files import ABSENT, SIMULATED_MARKER
from sharding.format.copies import COPY
from sharding.format.manifest import Rejection
from sharding.format.sample import Sample
from sharding.images.encode import MISSING
from sharding.packing.catalog import Catalog
from sharding.packing.config import PackConfig

_MOST_MISSING_PERCENT: Final = 1  # few lost files are normal; more mean a part that was not copied or unpacked


def require_files(config: PackConfig, catalog: Catalog) -> None:
    """Look for all files before any is encoded, so that a part that is missing is known at once and not after hours."""
    samples = progress(catalog.samples(), "looking for files", total=len(catalog), unit="file")
    missing = missing_files(config.source, samples)
    rejected = [*(Rejection(path, reason) for path, reason in missing.items()), *catalog.rejected]
    if len(missing) == len(catalog):
        raise nothing_packed(config, rejected)
    if not config.allow_missing and (lost := absent_parts(config, catalog) + gaps(catalog.samples(), missing)):
        first = "".join(f", such as {config.source / path}" for path in list(missing)[:1])
        raise RunFailed(
            f"{setting(config, 'root')} lacks {', '.join(lost)}{first}; complete the folder, or pack what is "
            f"there with --{key(config, 'allow_missing')}=true"
        )


def absent_parts(config: PackConfig, catalog: Catalog) -> list[str]:
    """Return the parts of the dataset that are not there at all, such as a table or the folder of a class."""
    if (config.source / SIMULATED_MARKER).is_file():  # it has the splits that somebody asked for
        return []
    return [item.path for item in catalog.rejected if item.reason == ABSENT]


def nothing_packed(config: PackConfig, rejected: list[Rejection]) -> UserError:
    """Return the error for a dataset of which no image can be packed: it counts the reasons."""
    reasons = Counter(rejection.reason for rejection in rejected)
    summary = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common()) or "it has no images"
    first = next((f", such as {config.source / item.path}" for item in rejected if item.reason == MISSING), "")
    return UserError(
        f"no image of dataset {config.dataset!r} in {config.source} can be packed: {summary}{first}; "
        f"check {key(config, 'exclude' if reasons[COPY] else 'root')}"
    )


def missing_files(root: Path, samples: Iterable[Sample]) -> dict[str, str]:
    """Return MISSING by the path of each sample whose file is not below `root`; no file is opened."""
    return {sample.path.as_posix(): MISSING for sample in samples if _is_missing(root / sample.file)}


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
