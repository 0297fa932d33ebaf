"""`sternum probe`: what the frozen backbones of a run have learned."""

import shlex
import sys
from collections.abc import Sequence

from evaluation.details import detail_tables
from evaluation.notes import describe
from evaluation.probe import ProbeConfig, probe
from evaluation.results import Results
from evaluation.tables import HEADER, markdown, score_table
from evaluation.watch import watch
from infra.config import parse
from infra.log import say
from launch.cli import guarded


def main(arguments: Sequence[str]) -> int:
    """Probe as the arguments say and print the tables."""
    config = parse(
        ProbeConfig,
        arguments,
        command="probe",
        description="Score the frozen backbones of a run, and its controls, by logistic regression on labelled shards.",
        examples=[
            "sternum probe --run_folder=runs/first --shards=[shards/cell]",
            "sternum probe --run_folder=runs/first --shards=[shards/cell] --checkpoints=[10,25,50,100]",
            "sternum probe --run_folder=runs/first --shards=[shards/cell] --presets=[gazda2021] --select=true",
            "sternum probe --run_folder=runs/first --shards=[shards/cell] --watch=true   # while it is pretraining",
            "sternum probe --run_folder=runs/first --shards=[shards/cell] --address=auto   # on a Ray cluster",
        ],
    )
    command = shlex.join(["sternum", "probe", *arguments])
    results = watch(config, command, each=_print_scores) if config.watch else probe(config, command)
    _print_scores(results)
    for dataset in results.datasets:
        for table in detail_tables(results, dataset):
            sys.stdout.write(f"\n{table.caption}\n\n{markdown(table.header, table.cells, table.text_columns)}\n")
            sys.stdout.write("".join(f"{note}\n" for note in table.notes))
    sys.stdout.write("\n" + "\n".join(results.notes) + "\n")
    say(f"wrote {config.run_folder / 'results.json'}; one page about the run: sternum report {config.run_folder}")
    return 0


def _print_scores(results: Results) -> None:
    for dataset in results.datasets:
        cells = score_table(results, dataset, results.rows_of(dataset))
        sys.stdout.write(f"\n{describe(dataset)}\n\n{markdown(HEADER, cells)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
