"""`sternum audit`: finds patients and images that datasets or splits share."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.configuration.config import parse
from infra.configuration.options import require_cluster, require_workers
from infra.errors import RunFailed
from infra.log import say
from infra.storage.files import write_atomic
from infra.storage.json_files import encode_json


@dataclass(frozen=True)
class AuditConfig:
    """The shards to compare.

    Args:
        shards: folders that sternum shard wrote; every image is compared with every other; of copies, the one in the
            folder that is named first stays if --exclude leaves the others out of sternum shard or sternum probe
        out: folder for audit.json (the full list) and audit.html (the pairs of images side by side)
        workers: number of reading processes; 0 means one for each CPU; does not change the result
        address: Ray cluster that reads and compares instead of this machine, such as auto or ray://head:10001; its
            nodes must see the folders under the same paths; does not change the result
    """

    shards: list[Path]
    out: Path = Path("audit")
    workers: int = 0
    address: str | None = None

    def __post_init__(self) -> None:
        require_workers(self)
        require_cluster(self)


def main(arguments: Sequence[str]) -> int:
    """Print a summary, and write the full list and the page of pairs.

    Raises:
        RunFailed: if datasets or splits share patients or images
    """
    config = parse(
        AuditConfig,
        arguments,
        command="audit",
        description=(
            "Find patients and identical or near-identical images that two datasets, or two official splits of one, "
            "share. The exit code is 1 if there are any. Duplicates within one split are reported and do not change it."
        ),
        examples=(
            "sternum audit shards/cell",
            "sternum audit shards/chexpert shards/cell shards/chestxray14 --out=audit",
        ),
        subject="shards",
    )
    from launch.audit_summary import leaks, summary  # noqa: PLC0415  # --help and mistakes need no scipy
    from sharding.auditing.audit import audit  # noqa: PLC0415
    from sharding.auditing.contact_sheet import contact_sheet  # noqa: PLC0415

    result = audit(config.shards, config.workers, config.address)
    full_list, page = config.out / "audit.json", config.out / "audit.html"
    write_atomic(full_list, encode_json(result) + b"\n")
    write_atomic(page, contact_sheet(result))
    sys.stdout.write(summary(result))
    outputs = f"full list: {full_list}, pairs side by side: {page}"
    if result.identical or result.near_identical:
        outputs += f"; to leave the copies out, give sternum shard or sternum probe --exclude={full_list}"
    shared = leaks(result)
    if shared:
        raise RunFailed(f"datasets or splits share {shared}; {outputs}")
    say(f"datasets and splits share nothing; {outputs}")
    return 0
