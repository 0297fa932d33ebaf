"""`sternum probe`: what the frozen backbones of a run have learned."""

import shlex
import sys
from collections.abc import Sequence

from evaluation.probe import ProbeConfig, probe
from evaluation.results import HEADER, describe, markdown, table
from infra.config import parse
from infra.log import say
from launch.cli import guarded


def main(arguments: Sequence[str]) -> int:
    """Probe as the arguments say and print the table."""
    config = parse(
        ProbeConfig,
        arguments,
        command="probe",
        description="Score the frozen backbones of a run, and its controls, by logistic regression on labelled shards.",
        examples=[
            "sternum probe --run_folder=runs/first --shards=[shards/cell]",
            "sternum probe --run_folder=runs/first --shards=[shards/cell] --checkpoints=[10,25,50,100]",
            "sternum probe --config=launch/configs/probe-gazda2021.yaml --run_folder=runs/first --shards=[shards/cell]",
        ],
    )
    results = probe(config, command=shlex.join(["sternum", "probe", *arguments]))
    lines = [describe(dataset) for dataset in results.datasets]
    lines += ["", markdown(HEADER, table(results.datasets, results.rows)), "", *results.notes]
    sys.stdout.write("\n".join(lines) + "\n")
    say(f"wrote {config.run_folder / 'results.json'}; one page about the run: sternum report {config.run_folder}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
