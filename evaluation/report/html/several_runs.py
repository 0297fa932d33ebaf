"""The page about several runs side by side: their scores, their curves, and the paired differences between them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from evaluation.comparison.compare import Recipe, compare
from evaluation.comparison.tested_runs import read_run
from evaluation.report.detail_tables import headline_rows
from evaluation.report.html.blocks import Block, Code, Heading, Missing, Notes, Paragraph, Section
from evaluation.report.html.cost import duration
from evaluation.report.html.page import REPORT_NAME, render
from evaluation.report.html.run_facts import RunFacts, read_facts
from evaluation.report.html.several_figures import aucs_picture, losses_picture
from evaluation.report.html.summary import summary_section
from evaluation.report.recipe_tables import recipe_tables
from evaluation.report.table_iii import table_iii
from evaluation.report.tables import Table, interval, marked_label, percent
from evaluation.report.task_runs_table import task_runs_tables
from evaluation.results import paper
from evaluation.results.results import Results
from infra.configuration.plain_yaml import load_yaml
from infra.configuration.schema import value_in_words
from infra.errors import UserError, require
from infra.storage.files import write_atomic

_RESAMPLES: Final = 1000
_SEED: Final = 0


def report_on_several(folders: Sequence[Path], out: Path) -> Path:
    """Write `report.html` about at least two runs.

    Args:
        folders: the runs, or the folders of probes without one
        out: where the page is written

    Returns:
        The path of the page.

    Raises:
        UserError: if one is the folder of neither, a file is damaged, or one is named twice
    """
    require(
        len({folder.resolve() for folder in folders}) == len(folders),
        f"run_folders={','.join(map(str, folders))} names a run twice; name each once",
    )
    named = zip(_names(folders), folders, strict=True)
    runs = {name: read_facts(folder, shows_images=False, name=name) for name, folder in named}
    name = " and ".join(runs) if len(runs) < 4 else f"{len(runs)} runs"
    sections = [_summaries(runs), _curves(runs), _scores(runs), _differences(runs), _settings(runs)]
    write_atomic(out / REPORT_NAME, render(name, sections))
    return out / REPORT_NAME


def _names(folders: Sequence[Path]) -> list[str]:
    """Return short names that differ: the last part of each path, with as many parents as that takes."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts))):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder.resolve()) for folder in folders]


def _summaries(runs: dict[str, RunFacts]) -> Section:
    blocks: list[Block] = []
    for name, facts in runs.items():
        blocks += [Heading(name), *summary_section(facts).blocks]
    return Section("summary", "In short", blocks)


def _curves(runs: dict[str, RunFacts]) -> Section:
    losses = {name: facts.pretraining.losses for name, facts in runs.items() if facts.pretraining}
    blocks: list[Block] = []
    if any(losses.values()):
        blocks.append(losses_picture({name: lines for name, lines in losses.items() if lines}))
    blocks += aucs_picture({name: facts.results for name, facts in runs.items() if facts.results})
    return Section("curves", "Curves", blocks or [Missing("None of the runs has logged a step or was probed.")])


def _scores(runs: dict[str, RunFacts]) -> Section:
    probed = {name: facts.results for name, facts in runs.items() if facts.results}
    missing = [name for name in runs if name not in probed]
    blocks: list[Block] = [Missing(f"Not probed yet: {', '.join(missing)}.", "sternum probe RUN")] if missing else []
    presets = dict.fromkeys(dataset.preset for results in probed.values() for dataset in results.datasets)
    for preset in presets:
        table = _score_table(probed, preset)
        blocks += [Heading(f"By the preset {preset}"), *([table] if table.cells else [])]
        blocks += task_runs_tables(list(probed.values()), preset).values()
        if preset == paper.PRESET and any(paper.in_paper(item) for each in probed.values() for item in each.single):
            blocks.append(table_iii(list(probed.values()), preset))
    notes = dict.fromkeys(note for results in probed.values() for note in results.notes)
    return Section("scores", "Scores and controls", [*blocks, *([Notes(list(notes))] if notes else [])])


def _score_table(probed: dict[str, Results], preset: str) -> Table:
    """Return the AUCs of each run and of its controls on the tasks with one question."""
    labels = dict.fromkeys(
        dataset.label for results in probed.values() for dataset in results.single if dataset.preset == preset
    )
    rows: list[tuple[str, ...]] = [
        (marked_label(dataset), name, row.features, percent(row.scores.auc.value), interval(row.scores.auc))
        for label in labels
        for name, results in probed.items()
        for dataset in results.single
        if (dataset.label, dataset.preset) == (label, preset)
        for row in headline_rows(results, dataset)
    ]
    return Table(
        "AUC on the test part in percent, of the last checkpoint of each run and of its controls",
        ("set", "run", "features", "AUC", "95 %"),
        rows,
        text_columns=3,
    )


def _differences(runs: dict[str, RunFacts]) -> Section:
    """Return the differences between all pairs of probed runs on the same images, or why there are none."""
    probed = {name: facts.folder for name, facts in runs.items() if facts.results}
    presets = dict.fromkeys(
        dataset.preset for facts in runs.values() if facts.results for dataset in facts.results.datasets
    )
    blocks: list[Block] = []
    for preset in presets if len(probed) > 1 else ():
        blocks.append(Heading(f"By the preset {preset}"))
        try:
            recipes = [Recipe(name, [read_run(folder, preset)]) for name, folder in probed.items()]
            blocks += recipe_tables(compare(recipes, command="", resamples=_RESAMPLES, seed=_SEED))
        except UserError as error:
            blocks.append(Missing(f"These runs cannot be compared image by image: {error}."))
    if blocks:
        blocks.append(
            Paragraph(f"{_RESAMPLES} resamples of the patients, seed {_SEED}, as sternum compare does.", "quiet")
        )
    return Section(
        "differences", "Paired differences", blocks or [Missing("Fewer than two of the runs have been probed.")]
    )


def _settings(runs: dict[str, RunFacts]) -> Section:
    """Return the settings in which the runs differ, then the whole configuration of each."""
    recipes = {name: _recipe(facts) for name, facts in runs.items()}
    keys = dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    differing = [key for key in keys if len({recipe.get(key, "") for recipe in recipes.values()}) > 1]
    table = Table(
        "Settings in which the runs differ",
        ("setting", *recipes),
        [(key, *(recipe.get(key, "") for recipe in recipes.values())) for key in differing],
        text_columns=1 + len(recipes),
    )
    codes = [
        Code(f"config.yaml of {name}", facts.pretraining.config_text)
        for name, facts in runs.items()
        if facts.pretraining
    ]
    return Section("configuration", "Configuration and cost", [table, *codes])


def _recipe(facts: RunFacts) -> dict[str, str]:
    found: dict[str, str] = {}
    if facts.pretraining:
        found = dict(_flat(load_yaml(facts.pretraining.config_text)))
        hours = facts.pretraining.hours
        found["training time"] = "" if hours is None else duration(3600 * hours)
    if facts.results:
        found |= {f"probe {preset}": str(facts.results.protocol[preset]) for preset in facts.results.protocol}
    return found


def _flat(values: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings of a configuration by their keys, as the user types them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", value_in_words(value)
