"""`sternum audit`: what sets and splits share."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from infra.config import parse
from infra.errors import RunFailed, require
from infra.files import write_atomic
from infra.log import say
from launch.cli import guarded
from sharding.auditing.audit import SPREADS, WITHIN, Audit, ImageGroup, audit
from sharding.auditing.contact_sheet import contact_sheet


@dataclass(frozen=True)
class AuditConfig:
    """What to compare.

    Args:
        folders: folders of shards that sternum shard wrote; everything in them is compared with everything
        out: folder for audit.json, the whole list, and audit.html, the pairs of images side by side
        workers: processes that read; 0 is one for each CPU; the result does not depend on it
    """

    folders: list[Path]
    out: Path = Path("audit")
    workers: int = 0

    def __post_init__(self) -> None:
        """Check every value on its own."""
        require(self.workers >= 0, f"workers={self.workers} must not be negative; 0 is one for each CPU")


def main(arguments: Sequence[str]) -> int:
    """Print what was found and write the list; raises RunFailed when patients or images cross a border."""
    config = parse(
        AuditConfig,
        arguments,
        command="audit",
        description=(
            "Find patients and (near-)identical images that stand in two sets, or in two official splits of one. "
            "Exit code 1 when there are any; what repeats within one split is only reported."
        ),
        examples=(
            "sternum audit shards/cell",
            "sternum audit shards/chexpert shards/cell shards/chestxray14 --out=audit",
        ),
        positional=("folders",),
    )
    found = audit(config.folders, config.workers)
    whole_list, sheet = config.out / "audit.json", config.out / "audit.html"
    write_atomic(whole_list, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    write_atomic(sheet, contact_sheet(found))
    sys.stdout.write("\n".join(_summary(found)) + "\n")
    leaks = _leaks(found)
    if leaks:
        raise RunFailed(f"sets or splits share {leaks}; the list is {whole_list}, the pairs are in {sheet}")
    say(f"sets and splits share nothing; the list is {whole_list}, the pairs are in {sheet}")
    return 0


def _summary(found: Audit) -> Iterator[str]:
    for folder in found.folders:
        splits = ", ".join(f"{split} {images}" for split, images in folder.splits.items())
        yield f"{folder.path}: {folder.dataset}, {folder.images} images of {folder.patients} patients ({splits})"
    yield ""
    yield f"{'':30}" + "".join(f"{spread:>20}" for spread in SPREADS)
    patients = Counter(patient.spread for patient in found.shared_patients)
    yield f"{'patients in several places':30}{'-':>20}" + "".join(f"{patients[spread]:>20}" for spread in SPREADS[1:])
    for name, groups in (("identical", found.identical), ("near-identical", found.near_identical)):
        count = Counter(group.spread for group in groups)
        surplus = Counter[str]()
        for group in groups:
            surplus[group.spread] += len(group.images) - 1
        yield f"{f'groups of {name} images':30}" + "".join(f"{count[spread]:>20}" for spread in SPREADS)
        yield f"{'  surplus copies in them':30}" + "".join(f"{surplus[spread]:>20}" for spread in SPREADS)
    yield ""
    within = [group for group in found.identical if group.spread == WITHIN]
    several = sum(len({image.patient for image in group.images}) > 1 for group in within)
    yield f"groups of identical images in one split under several patients' names: {several}"
    labels = Counter(pair for patient in found.two_class_patients for pair in patient.labels)
    yield f"patients with images of two labels that exclude each other: {len(found.two_class_patients)}"
    yield from (f"  {count} x {first} and {second}" for (first, second), count in labels.most_common())


def _leaks(found: Audit) -> str:
    """Return what crosses a border, counted, or an empty text."""
    counts = {
        "patients": len(found.shared_patients),
        "groups of identical images": _crossing(found.identical),
        "groups of near-identical images": _crossing(found.near_identical),
    }
    return ", ".join(f"{what}: {count}" for what, count in counts.items() if count)


def _crossing(groups: list[ImageGroup]) -> int:
    return sum(group.spread != WITHIN for group in groups)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
