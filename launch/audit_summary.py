"""Text summaries of an audit: a table of counts, and one line about leaks."""

from collections import Counter
from collections.abc import Iterator

from tabulate import tabulate

from sharding.auditing.findings import SPREADS, WITHIN, Audit, ImageGroup


def summary(audit: Audit) -> str:
    """Return the summary of an audit: the folders, counts by spread, and oddities within one split."""
    return "\n".join([*_folders(audit), "", _table(audit), "", *_within_splits(audit)]) + "\n"


def leaks(audit: Audit) -> str:
    """Return the counts of patients and images that datasets or splits share, empty if there are none."""
    counts = {
        "patients": len(audit.shared_patients),
        "groups of identical images": _crossing(audit.identical),
        "groups of near-identical images": _crossing(audit.near_identical),
    }
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count)


def _crossing(groups: list[ImageGroup]) -> int:
    return sum(group.spread != WITHIN for group in groups)


def _folders(audit: Audit) -> Iterator[str]:
    for folder in audit.folders:
        splits = ", ".join(f"{split} {images}" for split, images in folder.splits.items())
        name = folder.name if folder.name == folder.dataset else f"{folder.name} ({folder.dataset})"
        yield f"{folder.path}: {name}, {folder.images} images of {folder.patients} patients ({splits})"


def _table(audit: Audit) -> str:
    patients = Counter(patient.spread for patient in audit.shared_patients)
    lines = [["shared patients", "-", *(patients[spread] for spread in SPREADS[1:])]]
    for name, groups in (("identical", audit.identical), ("near-identical", audit.near_identical)):
        count = Counter(group.spread for group in groups)
        extra = Counter[str]()
        for group in groups:
            extra[group.spread] += len(group.images) - 1
        lines.append([f"groups of {name} images", *(count[spread] for spread in SPREADS)])
        lines.append(["  extra copies in them", *(extra[spread] for spread in SPREADS)])
    columns = ("left", *("right" for _ in SPREADS))
    return tabulate(lines, ["", *SPREADS], tablefmt="plain", colalign=columns, preserve_whitespace=True)


def _within_splits(audit: Audit) -> Iterator[str]:
    within = [group for group in audit.identical if group.spread == WITHIN]
    several = sum(len({image.patient for image in group.images}) > 1 for group in within)
    yield f"groups of identical images within one split with several patients: {several}"
    labels = Counter(pair for patient in audit.two_class_patients for pair in patient.labels)
    yield f"patients with images of mutually exclusive labels: {len(audit.two_class_patients)}"
    yield from (f"  {count} x {first} and {second}" for (first, second), count in labels.most_common())
