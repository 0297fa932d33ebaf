"""`sternum table`: the paper's Table III with ours in it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.report.table_iii import table_iii
from evaluation.report.tables import csv_text, latex, markdown
from evaluation.results.presets import PresetName
from evaluation.results.results import Results, read_results
from infra.config import parse
from infra.errors import UserError
from infra.files import write_atomic
from infra.log import say
from launch.cli import guarded


@dataclass(frozen=True)
class TableConfig:
    """What to put into one table.

    Args:
        runs: folders of runs that were probed, one for each fraction of the pretraining set
        preset: whose scores: gazda2021, the paper's protocol, or rigorous
        out: folder for table3.md, table3.csv and table3.tex; the first run's by default
    """

    runs: list[Path]
    preset: PresetName = "gazda2021"
    out: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Print the table and write it as Markdown, CSV and LaTeX."""
    config = parse(
        TableConfig,
        arguments,
        command="table",
        description=(
            "Set the last checkpoint of runs pretrained on 1, 10 and 100 % of the images beside Table III of the paper."
        ),
        examples=(
            "sternum table runs/paper",
            "sternum table runs/fraction-1 runs/fraction-10 runs/paper --out=tables",
            "sternum table runs/paper --preset=rigorous",
        ),
        positional=("runs",),
    )
    table = table_iii(_read(config.runs, config.preset), config.preset)
    notes = [f"- {note}" for note in table.notes]
    text = "\n".join([markdown(table), "", table.caption, "", *notes]) + "\n"
    out = config.out or config.runs[0]
    write_atomic(out / "table3.md", text)
    write_atomic(out / "table3.csv", csv_text(table))
    write_atomic(out / "table3.tex", latex(table))
    sys.stdout.write(text)
    say(f"wrote {out / 'table3.md'}, table3.csv and table3.tex")
    return 0


def _read(runs: Sequence[Path], preset: PresetName) -> list[Results]:
    """Read what was found in each run; raises UserError unless each has another fraction and a row to quote."""
    by_fraction: dict[int, Path] = {}
    read = []
    for run in runs:
        results = read_results(run)
        if results is None:
            raise UserError(f"{run / 'results.json'} does not exist; probe the run first: sternum probe --help")
        fraction = results.run.fraction_percent
        if fraction in by_fraction:
            raise UserError(
                f"{by_fraction[fraction]} and {run} were both pretrained on {fraction} % of the images; name one"
            )
        by_fraction[fraction] = run
        presets = {row.preset: None for row in results.rows if row.kind == "checkpoint"}
        if preset not in presets:
            there = ", ".join(presets) or "no preset"
            raise UserError(f"preset={preset}: {run} has checkpoints probed by {there}; probe it by {preset} too")
        read.append(results)
    return read


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
