"""`sternum compare`: compares probed runs, or recipes with several seeds each, on the same patients."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.comparison.compare import Recipe, compare
from evaluation.comparison.tested_runs import TestedRun, read_run
from evaluation.report.recipe_tables import differences_table, recipe_tables
from evaluation.report.tables import csv_text, markdown
from evaluation.results.presets import PresetName
from infra.configuration.config import parse
from infra.configuration.options import require_resamples, require_seed, setting
from infra.configuration.values import Unfit, from_text
from infra.errors import UserError, require
from infra.log import say
from infra.storage.files import write_atomic
from infra.storage.json_files import encode_json


@dataclass(frozen=True)
class CompareConfig:
    """The runs to compare.

    Args:
        recipes: at least two of RUN, NAME=RUN, or NAME=RUN,RUN,... for the seeds of one recipe; a RUN is a probed run
            folder, or a CSV file of another program with the columns key (or path), patient, label and score
        preset: protocol of the scores: rigorous or gazda2021 (the paper's)
        dataset: labeled set to compare on, as the tables name it; by default every set of the runs
        bootstrap_resamples: resamples of the patients for confidence intervals, at least 100; 0 for no intervals
        out: folder for compare.md, compare.csv and compare.json
        seed: determines the resamples
    """

    recipes: list[str]
    preset: PresetName = "rigorous"
    dataset: str | None = None
    bootstrap_resamples: int = 1000
    out: Path = Path("compare")
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise UserError for a value out of range."""
        require(len(self.recipes) > 1, f"{setting(self, 'recipes')} must be at least two; nothing else can be compared")
        require_resamples(self)
        require_seed(self)


def main(arguments: Sequence[str]) -> int:
    """Print the tables and write them as Markdown, CSV and JSON."""
    config = parse(
        CompareConfig,
        arguments,
        command="compare",
        description=(
            "Compare the test AUCs of runs on the same patients and images: the last checkpoints of probed runs, or "
            "scores from other programs. With several seeds a recipe, the verdict is about the recipe."
        ),
        examples=(
            "sternum compare runs/a runs/b",
            "sternum compare crop=runs/a0,runs/a1,runs/a2 base=runs/b0,runs/b1,runs/b2 --out=compare",
            "sternum compare ours=runs/a theirs=scores.csv --dataset=cell",
        ),
        subject="recipes",
    )
    recipes = [_read_recipe(word, config) for word in config.recipes]
    names = [recipe.name for recipe in recipes]
    for name in names:
        require(names.count(name) == 1, f"recipes has {name} twice; give each recipe a name of its own: NAME=RUN,RUN")
    comparison = compare(
        recipes,
        command=shlex.join(["sternum", "compare", *arguments]),
        resamples=config.bootstrap_resamples,
        seed=config.seed,
    )
    text = "\n".join(
        "\n".join([f"{table.caption}\n", markdown(table), "", *(f"- {note}" for note in table.notes), ""])
        for table in recipe_tables(comparison)
    )
    write_atomic(config.out / "compare.md", text)
    write_atomic(config.out / "compare.csv", csv_text(differences_table(comparison)))
    write_atomic(config.out / "compare.json", encode_json(comparison))
    sys.stdout.write(text)
    say(f"wrote {config.out / 'compare.md'}, compare.csv and compare.json")
    return 0


def _read_recipe(word: str, config: CompareConfig) -> Recipe:
    """Read the runs that a word names: RUN, NAME=RUN or NAME=RUN,RUN. A path that exists is no name.

    Raises:
        UserError: if a run cannot be read, or was not probed on the chosen labeled set
    """
    name, equals, paths = word.partition("=")
    if not equals or _path(word).exists():
        return Recipe(word, [_read(word, config)])
    require(bool(name), f"recipes={word} has no name before the =; write NAME=RUN,RUN")
    return Recipe(name, [_read(path, config) for path in paths.split(",")])


def _path(text: str) -> Path:
    try:
        path: Path = from_text(Path, text)
    except Unfit as error:
        raise UserError(f"recipes={text} {error}") from error
    return path


def _read(text: str, config: CompareConfig) -> TestedRun:
    run = read_run(_path(text), config.preset)
    if config.dataset is None or run.results is None:
        return run
    chosen = {task: images for task, images in run.tasks.items() if task.dataset == config.dataset}
    require(
        bool(chosen),
        f"dataset={config.dataset}: {run.path} was probed on {', '.join(task.dataset for task in run.tasks)} by the "
        f"preset {config.preset}; name one of these",
    )
    return TestedRun(run.path, chosen, run.results)
