"""On-disk cache of fitted probes, keyed by a hash of their inputs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evaluation.fitting.fit_log import DAMAGED, FitLog, classifier_of, unit_array
from evaluation.fitting.probe_cases import Round
from evaluation.fitting.search import FittedProbe, SearchProblem
from infra.arrays import Float32
from infra.errors import UserError
from infra.log import say
from infra.storage.files import read_regular, write_atomic

T = TypeVar("T")

# Solves problems by name; takes the feature matrices by name, the problems, and the log of their finished fits.
Search = Callable[[Mapping[str, Float32], Mapping[str, SearchProblem], FitLog], dict[str, FittedProbe]]


def cached_probes(
    folder: Path, features: Mapping[str, Float32], rounds: Sequence[Round], search: Search
) -> dict[str, FittedProbe]:
    """Read fitted probes from a folder; search for the missing ones and store them.

    Args:
        folder: folder of the cache
        features: feature matrices (N, D) by name
        rounds: the rounds to solve
        search: solves the missing rounds

    Returns:
        The fitted probe of every round, by its name. A damaged file counts as missing, with a warning.
    """
    paths = {item.name: folder / f"{item.identity[:32]}.json" for item in rounds}
    cached = {item.name: _read(paths[item.name], partial(_fitted_probe, item.problem)) for item in rounds}
    missing = [item for item in rounds if cached[item.name] is None]
    log = FitLog(folder, {item.name: item.identity for item in missing})
    fitted = search(features, {item.name: item.problem for item in missing}, log) if missing else {}
    for name, probe in fitted.items():
        _write(paths[name], probe)
        log.remove(name)
    return {name: fitted[name] if probe is None else probe for name, probe in cached.items()}


def _fitted_probe(problem: SearchProblem, values: dict[str, Any]) -> FittedProbe:
    return FittedProbe(
        c=float(values["c"]),
        validation_auc=float(values["validation_auc"]),
        validation=unit_array(values["validation"], int(np.sum(problem.fold >= 0))),
        probabilities=unit_array(values["probabilities"], int(np.sum(problem.fold == -1))),
        converged=bool(values["converged"]),
        fits=int(values["fits"]),
        unconverged=int(values["unconverged"]),
        aucs=_by_c(values["aucs"]),
        errors=_by_c(values["errors"]),
        test_aucs=_by_c(values["test_aucs"]),
        at_edge=bool(values["at_edge"]),
        classifier=classifier_of(values["classifier"]) if problem.keeps_classifier else None,
    )


def _by_c(values: dict[str, Any]) -> dict[float, float]:
    return {float(c): float(value) for c, value in values.items()}


def _write(path: Path, record: FittedProbe) -> None:
    write_atomic(path, json.dumps(asdict(record), default=np.ndarray.tolist))


def _read(path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
    try:
        return build(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, UserError, *DAMAGED) as error:
        say(f"warning: {path} cannot be read ({error}); fitting again")
        return None
