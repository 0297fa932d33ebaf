"""Runs of one recipe: probed pretrainings that differ in their seed alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.results.backbones import Run
from evaluation.results.results import Results
from infra.configuration.schema import value_in_words
from infra.errors import UserError


def require_one_recipe(runs: Sequence[tuple[Path, Results]]) -> None:
    """Check that runs differ in their seed and in nothing else that decides what a pretraining computes.

    Raises:
        UserError: for the first run that has the seed of another one, or another setting, which the message names, and
            for a probe without a run among several.
    """
    if len(runs) == 1:
        return
    first, known = runs[0][0], _run_of(*runs[0])
    seeds: dict[int, Path] = {}
    for path, results in runs:
        run = _run_of(path, results)
        if (seed := run.seed) in seeds:
            raise UserError(
                f"{seeds[seed]} and {path} have the same seed={seed}, so they say nothing about the spread between "
                "seeds; keep one"
            )
        seeds[seed] = path
        different = [
            f"{name}={value_in_words(ours)} and {value_in_words(theirs)}"
            for name, ours, theirs in _differences(_settings(known), _settings(run))
        ]
        if different:
            raise UserError(
                f"{first} and {path} are not of one recipe; they differ in {', '.join(different)}; put only runs "
                "together that differ in their seed"
            )


def _run_of(path: Path, results: Results) -> Run:
    if results.run is None:
        raise UserError(f"{path} is a probe of backbones without a run, so it is no seed of a recipe; put it alone")
    return results.run


def _settings(run: Run) -> dict[str, Any]:
    """Return what is known of a recipe; results of older versions have only the fields of `Run`."""
    shown = {
        "model.backbone": run.backbone,
        "views.size_px": run.size_px,
        "input.size_px": run.probed_px,
        "data.global_batch": run.global_batch,
        "data.fraction_percent": run.fraction_percent,
        "epochs": round(run.epochs, 2),
    }
    return run.recipe | shown


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return name and values of the settings that both know and that differ."""
    return [(name, ours[name], theirs[name]) for name in ours if name in theirs and ours[name] != theirs[name]]
