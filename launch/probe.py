"""`sternum probe`: scores the frozen backbones of a run, or backbones from anywhere."""

import shlex
import sys
from collections.abc import Sequence

from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.probing.watch import watch
from evaluation.report.backbone_table import backbone_table
from evaluation.report.detail_tables import detail_tables
from evaluation.report.score_table import score_rows, score_tables
from evaluation.report.selection_tables import selection_tables
from evaluation.report.tables import Table, markdown
from evaluation.report.task_tables import detail_tables_of, parts_table, score_tables_of
from evaluation.results.notes import describe
from evaluation.results.results import Results
from evaluation.results.selection import read_selection
from infra.configuration.config import parse
from infra.log import say
from infra.signals import sigterm_interrupts
from launch.builtin_configs import PROBE_CONFIGS


def main(arguments: Sequence[str]) -> int:
    """Probe the run and print the tables."""
    config = parse(
        ProbeConfig,
        arguments,
        command="probe",
        description=(
            "Score the frozen backbones of a run, or backbones from anywhere, by logistic regression on labeled "
            "shards, and compare them with controls such as the untrained backbone and raw pixels."
        ),
        examples=[
            "sternum probe runs/first --data.shards=[shards/cell]",
            "sternum probe runs/first --data.shards=[shards/cell] --checkpoints=[10,25,50,100]",
            "sternum probe runs/first --data.shards=[shards/cell] --config=probe-gazda2021 --select=true",
            "sternum probe runs/first --data.shards=[shards/cell,shards/nih] --train_on=nih   # tested on cell",
            "sternum probe runs/first --data.shards=[shards/cell] --watch=true   # during pretraining",
            "sternum probe runs/first --data.shards=[shards/cell] --address=auto   # on a Ray cluster",
            "sternum probe --backbones=[imagenet=torchvision/resnet50.IMAGENET1K_V2,mine=mine.pth@resnet50] "
            "--out=probes/imagenet --data.shards=[shards/cell]",
        ],
        subject="run_folder",
        configs=PROBE_CONFIGS,
    )
    command = shlex.join(["sternum", "probe", *arguments])
    with sigterm_interrupts():
        results = watch(config, command, each=_print_scores) if config.watch else probe(config, command)
    _print_scores(results)
    _print_tables([table for dataset in results.single for table in detail_tables(results, dataset)])
    _print_tables([table for task in results.tasks for table in detail_tables_of(results, task)])
    if results.outside:
        _print_tables([backbone_table(results)])
    selection = read_selection(config.folder) if config.select else None
    if selection:
        _print_tables(selection_tables(selection))
        sys.stdout.write(f"\nChosen without labels: {selection.chosen}; {selection.why}.\n")
    sys.stdout.write("\n" + "\n".join(results.notes) + "\n")
    say(f"wrote {config.folder / 'results.json'}; one page about it: sternum report {config.folder}")
    return 0


def _print_scores(results: Results) -> None:
    for dataset in results.single:
        _print_tables(score_tables(describe(dataset), score_rows(results, dataset, results.rows_of(dataset))))
    for task in results.tasks:
        _print_tables([parts_table(results, task), *score_tables_of(results, task)])
    sys.stdout.flush()


def _print_tables(tables: Sequence[Table]) -> None:
    for table in tables:
        sys.stdout.write(f"\n{table.caption}\n\n{markdown(table)}\n")
        sys.stdout.write("".join(f"{note}\n" for note in table.notes))
