"""`sternum report`: writes one page about a run or a probe of backbones."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.config import parse


@dataclass(frozen=True)
class ReportConfig:
    """The run or the probe to report on.

    Args:
        run_folder: the run, or the folder of a probe without one; report.html is written there
    """

    run_folder: Path


def main(arguments: Sequence[str]) -> int:
    """Write the page and print its path."""
    config = parse(
        ReportConfig,
        arguments,
        command="report",
        description="Write RUN_FOLDER/report.html, one self-contained page with loss, scores, controls and data.",
        examples=["sternum report runs/first"],
        subject="run_folder",
    )
    from evaluation.report.page import report  # noqa: PLC0415  # --help and mistakes need no matplotlib

    sys.stdout.write(f"{report(config.run_folder)}\n")
    return 0
