"""Comparison of recipes, each a pretraining with one seed or several, on the same patients and images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import numpy as np

from evaluation.comparison.alignment import aligned
from evaluation.comparison.records import VERSION, RecipeComparison, RecipeDifference, RecipeScore, Subject
from evaluation.comparison.tested_runs import NO_TASK, TestedImages, TestedRun
from evaluation.results.datasets import TaskKey
from evaluation.results.recipes import require_one_recipe
from evaluation.scoring.multiplicity import holm
from evaluation.scoring.recipes import recipe_auc, recipe_difference
from evaluation.scoring.scores import Predictions, auc
from infra.arrays import Float64
from infra.errors import UserError, require

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Recipe:
    """A name, and the runs of the recipe, which differ in their seed alone."""

    name: str
    runs: Sequence[TestedRun]


def compare(recipes: Sequence[Recipe], *, command: str, resamples: int, seed: int) -> RecipeComparison:
    """Compare all pairs of recipes on each labeled set that they were probed on.

    Args:
        recipes: at least two
        command: the command line, for the record
        resamples: bootstrap resamples of the patients; 0 for no intervals
        seed: seed of the resamples

    Raises:
        UserError: if the runs of a recipe are not of one recipe, or runs were not tested alike.
    """
    for recipe in recipes:
        _require_seeds_only(recipe)
    _require_one_protocol(recipes)
    options = {"resamples": resamples, "seed": seed}
    scores: list[RecipeScore] = []
    differences: list[RecipeDifference] = []
    images: dict[str, int] = {}
    patients: dict[str, int] = {}
    for task in _common_tasks(recipes):
        tested = _tested(recipes, task)
        predictions = {name: [_predictions(run) for run in runs] for name, runs in tested.items()}
        example = next(iter(predictions.values()))[0]
        images[task.dataset] = len(np.unique(next(iter(tested.values()))[0].keys))
        patients[task.dataset] = len(np.unique(example.patients))
        scores += [_score(task, name, tested[name], runs, options) for name, runs in predictions.items()]
        differences += [_difference(task, pair, predictions, options) for pair in combinations(predictions, 2)]
    return RecipeComparison(
        VERSION, version("sternum"), command, images, patients, scores, _with_verdicts(differences), resamples, seed
    )


def _require_seeds_only(recipe: Recipe) -> None:
    """Raise UserError unless the runs of a recipe differ in their seed alone, as far as is known."""
    probed = [(run.path, run.results) for run in recipe.runs if run.results is not None]
    if probed:
        require_one_recipe(probed)
    for one, other in combinations(recipe.runs, 2):
        for task in one.tasks.keys() & other.tasks.keys():
            ours, theirs = (_sorted_scores(run.tasks[task]) for run in (one, other))
            require(
                not np.array_equal(ours, theirs),
                f"{one.path} and {other.path} of {recipe.name} hold the same scores, so they are not two seeds; keep "
                "one",
            )


def _sorted_scores(images: TestedImages) -> Float64:
    ordered: Float64 = images.scores[np.lexsort((np.array(images.keys), images.folds))]
    return ordered


def _require_one_protocol(recipes: Sequence[Recipe]) -> None:
    """Raise UserError if two runs were probed by two versions of a preset."""
    known: dict[str, tuple[Path, dict[str, object]]] = {}
    for run in (run for recipe in recipes for run in recipe.runs if run.results is not None):
        assert run.results is not None
        for preset in dict.fromkeys(task.preset for task in run.tasks):
            protocol = run.results.protocol.get(preset, {})
            path, first = known.setdefault(preset, (run.path, protocol))
            different = [name for name in first if first[name] != protocol.get(name)]
            require(
                not different,
                f"{path} and {run.path} were probed by different versions of the preset {preset} "
                f"({', '.join(different)}); probe the older one again",
            )


def _common_tasks(recipes: Sequence[Recipe]) -> list[TaskKey]:
    """Return the tasks of all runs; a file of another program is about the only one."""
    runs = [run for recipe in recipes for run in recipe.runs]
    probed = [run for run in runs if NO_TASK not in run.tasks]
    if not probed:
        return [NO_TASK]
    first, *others = probed
    for run in others:
        if run.tasks.keys() != first.tasks.keys():
            raise UserError(
                f"{first.path} was probed on {_listed(first)}, but {run.path} on {_listed(run)}; name one of them "
                "with --dataset, or probe the runs alike"
            )
    if len(probed) < len(runs) and len(first.tasks) > 1:
        raise UserError(
            f"{first.path} was probed on {_listed(first)}, and a CSV file is about one labeled set; name it with "
            "--dataset"
        )
    return list(first.tasks)


def _listed(run: TestedRun) -> str:
    return ", ".join(task.dataset for task in run.tasks)


def _tested(recipes: Sequence[Recipe], task: TaskKey) -> dict[str, list[TestedImages]]:
    """Return the images of each run by recipe, in one order."""
    runs = [run for recipe in recipes for run in recipe.runs]
    probed_first = sorted(runs, key=lambda run: run.results is None)  # their keys and patients are Sternum's
    images = aligned([(run.path, run.tasks.get(task) or run.tasks[NO_TASK]) for run in probed_first])
    by_run = {id(run): item for run, item in zip(probed_first, images, strict=True)}
    tested = {recipe.name: [by_run[id(run)] for run in recipe.runs] for recipe in recipes}
    parts = (images[0].labels[images[0].folds == fold] for fold in np.unique(images[0].folds))
    require(
        any(len(np.unique(labels)) == 2 for labels in parts),
        f"no test part of {runs[0].path} has images of both labels; an AUC needs both",
    )
    return tested


def _predictions(images: TestedImages) -> Predictions:
    nothing_decided = np.zeros(len(images.labels), np.bool_)
    return Predictions(images.labels, images.scores, nothing_decided, images.patients, images.folds)


def _score(
    task: TaskKey, name: str, tested: Sequence[TestedImages], runs: Sequence[Predictions], options: Mapping[str, int]
) -> RecipeScore:
    aucs = [auc(run) for run in runs]
    return RecipeScore(
        dataset=task.dataset,
        preset=task.preset,
        recipe=name,
        features=[run.features for run in tested],
        aucs=aucs,
        auc=recipe_auc(runs, **options),
        sd=float(np.std(aucs, ddof=1)) if len(aucs) > 1 else None,
    )


def _difference(
    task: TaskKey, pair: tuple[str, str], runs: Mapping[str, Sequence[Predictions]], options: Mapping[str, int]
) -> RecipeDifference:
    first, second = (runs[name] for name in pair)
    difference = recipe_difference(first, second, **options)
    about: Subject = "this recipe" if min(len(first), len(second)) > 1 else "these weights"
    return RecipeDifference(*task, *pair, difference, None, about, "")


def _with_verdicts(differences: Sequence[RecipeDifference]) -> list[RecipeDifference]:
    """Adjust the p-values of all pairs together, and say what they show."""
    if any(item.difference.p is None for item in differences):
        return list(differences)
    adjusted = holm([item.difference.p for item in differences if item.difference.p is not None])
    return [
        replace(item, p_holm=p, verdict=_verdict(item.difference.value, p))
        for item, p in zip(differences, adjusted, strict=True)
    ]


def _verdict(difference: float, p_value: float) -> str:
    if p_value > _SIGNIFICANT:
        return "not shown to differ"
    return "better" if difference > 0 else "worse"
