"""`sternum report`: one page about a run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.report.page import report
from infra.config import parse
from launch.cli import guarded


@dataclass(frozen=True)
class ReportConfig:
    """What to report on.

    Args:
        run: the run folder; report.html goes there
    """

    run: Path


def main(arguments: Sequence[str]) -> int:
    """Write the page and print where it is."""
    config = parse(
        ReportConfig,
        arguments,
        command="report",
        description="Write RUN/report.html, one self-contained page: loss, scores beside their controls, data.",
        examples=["sternum report runs/first"],
        positional=["run"],
    )
    sys.stdout.write(f"{report(config.run)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
