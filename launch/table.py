"""`sternum table`: compares probed runs with the paper's Table III."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.report.table_iii import table_iii
from evaluation.report.tables import Table, csv_text, latex, markdown
from evaluation.report.task_runs_table import task_runs_tables
from evaluation.results.presets import PRESETS, PresetName
from evaluation.results.recipes import require_one_recipe
from evaluation.results.results import Results, read_results
from infra.configuration.config import parse
from infra.errors import UserError
from infra.log import say
from infra.storage.files import file_name_of, write_atomic


@dataclass(frozen=True)
class TableConfig:
    """The runs to put into one table.

    Args:
        run_folders: probed runs, pretrained on one fraction of the images or several; runs of one fraction, which may
            differ only in their seed, become one row; of a probe without a run, each backbone is a row
        preset: protocol of the scores: gazda2021 (the paper's) or rigorous; by default the first of these by which all
            runs were probed
        out: folder for table3.md, table3.csv and table3.tex, and for table-TASK.* of each task with several labels; the
            first run's folder by default
    """

    run_folders: list[Path]
    preset: PresetName | None = None
    out: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Print the table and write it as Markdown, CSV and LaTeX."""
    config = parse(
        TableConfig,
        arguments,
        command="table",
        description=(
            "Compare the last checkpoints of runs pretrained on 1, 10 and 100 % of the images with Table III of the "
            "paper."
        ),
        examples=(
            "sternum table runs/paper",
            "sternum table runs/fraction-1 runs/fraction-10 runs/paper --out=tables",
            "sternum table runs/seed-0 runs/seed-1 runs/seed-2   # one row: mean and standard deviation",
            "sternum table runs/paper --preset=rigorous",
        ),
        subject="run_folders",
    )
    runs = [(run, _read(run)) for run in config.run_folders]
    probed_by_all: list[PresetName] = [name for name in PRESETS if _all_have(name, runs)]
    preset = config.preset or (probed_by_all or ["gazda2021"])[0]
    results = _grouped(runs, preset)
    out = config.out or config.run_folders[0]
    if any(dataset.preset == preset for of_run in results for dataset in of_run.single):
        _write(table_iii(results, preset), out, "table3")
    for label, table in task_runs_tables(results, preset).items():
        _write(table, out, f"table-{file_name_of(label)}")
    return 0


def _write(table: Table, out: Path, name: str) -> None:
    """Print a table, and write it as Markdown, CSV and LaTeX."""
    notes = [f"- {note}" for note in table.notes]
    text = "\n".join([markdown(table), "", table.caption, "", *notes]) + "\n"
    write_atomic(out / f"{name}.md", text)
    write_atomic(out / f"{name}.csv", csv_text(table))
    write_atomic(out / f"{name}.tex", latex(table))
    sys.stdout.write(text)
    say(f"wrote {out / name}.md, {name}.csv and {name}.tex")


_Probed = tuple[Path, Results]  # a run and its results


def _read(run: Path) -> Results:
    """Read the results of a run; raises UserError if it was not probed."""
    results = read_results(run)
    if results is None:
        raise UserError(f"{run / 'results.json'} does not exist; probe the run first: sternum probe {run}")
    return results


def _presets(results: Results) -> list[str]:
    """Return the presets by which checkpoints were probed, in the order of the results."""
    return list(dict.fromkeys(row.preset for row in results.rows if row.kind == "checkpoint"))


def _all_have(preset: PresetName, runs: Sequence[_Probed]) -> bool:
    return all(preset in _presets(results) for _, results in runs)


def _grouped(runs: Sequence[_Probed], preset: PresetName) -> list[Results]:
    """Return the results with those of one recipe side by side.

    Raises:
        UserError: if a run was not probed by this preset, or two runs of a fraction differ in more than their seed
    """
    by_recipe: dict[int | Path, list[_Probed]] = {}
    for run, results in runs:
        presets = _presets(results)
        if preset not in presets:
            known = ", ".join(presets) or "no preset"
            hint = f"name --preset={presets[0]}, or " if presets else ""
            raise UserError(
                f"preset={preset}: {run} was probed by {known}; {hint}run sternum probe with --presets=[{preset}]"
            )
        recipe = results.run.fraction_percent if results.run else run
        by_recipe.setdefault(recipe, []).append((run, results))
    for of_recipe in by_recipe.values():
        require_one_recipe(of_recipe)
    return [results for of_recipe in by_recipe.values() for _, results in of_recipe]
