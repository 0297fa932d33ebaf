"""What was fitted, kept under a hash of all it depends on, so that nothing is fitted twice."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from evaluation.data.features import Preprocessing
from evaluation.data.labeled_sets import LabeledSet
from evaluation.fitting.finetune import FinetuneConfig, FinetunedNetwork, finetune
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe, Floats32, SearchProblem
from infra.files import write_atomic
from infra.log import say
from ssl_core.views.spec import ViewSpec

T = TypeVar("T")

Search = Callable[
    [Mapping[str, Floats32], Mapping[str, SearchProblem], str], dict[str, FittedProbe]
]  # the name of the search


def cached_probes(
    folder: Path,
    features: Mapping[str, Floats32],
    problems: Mapping[str, SearchProblem],
    identities: Mapping[str, str],
    search: Search,
) -> dict[str, FittedProbe]:
    """Return what is chosen for every problem, by its name: read from `folder`, or searched for and put there.

    `identities` are the hashes, by the problems' names; a hash of those that are missing names the search. A damaged
    file is named and counts as none.
    """
    kept = {name: _read(folder / f"{identity[:32]}.json", _chosen) for name, identity in identities.items()}
    missing = {name: problem for name, problem in problems.items() if kept[name] is None}
    name_of_search = hashlib.sha256("".join(sorted(identities[name] for name in missing)).encode()).hexdigest()[:32]
    found = search(features, missing, name_of_search) if missing else {}
    for name, chosen in found.items():
        _write(folder / f"{identities[name][:32]}.json", chosen)
    return {name: found[name] if chosen is None else chosen for name, chosen in kept.items()}


def cached_finetune(
    folder: Path,
    one: ProbeCase,
    backbone: Callable[[], nn.Module],
    packed: LabeledSet,
    *,
    spec: ViewSpec,
    preprocessing: Preprocessing,
    config: FinetuneConfig,
    kind: str,
    device: torch.device,
    seed: int,
) -> FinetunedNetwork:
    """Return what comes of fine-tuning on the one round of an entry: read from `folder`, or trained and put there."""
    [(_, identity, _)] = one.problems()
    digest = hashlib.sha256(f"finetune {identity} {spec} {config} {seed}".encode()).hexdigest()
    path = folder / f"{digest[:32]}.json"
    kept = _read(path, _finetuned)
    if kept is None:
        kept = finetune(
            backbone(),
            packed.shards,
            ids=packed.samples.ids[one.rows],
            classes=one.classes[0],
            fold=one.folds[0],
            spec=spec,
            preprocessing=preprocessing,
            config=config,
            kind=kind,
            device=device,
            seed=seed,
        )
        _write(path, kept)
    return kept


def _chosen(values: dict[str, Any]) -> FittedProbe:
    arrays = {name: np.array(values[name], np.float64) for name in ("validation", "probabilities")}
    return FittedProbe(**values | arrays | {"aucs": {float(c): auc for c, auc in values["aucs"].items()}})


def _finetuned(values: dict[str, Any]) -> FinetunedNetwork:
    arrays = {name: np.array(values[name], np.float64) for name in ("validation", "probabilities")}
    return FinetunedNetwork(**values | arrays | {"validation_rows": np.array(values["validation_rows"], np.int64)})


def _write(path: Path, values: FittedProbe | FinetunedNetwork) -> None:
    write_atomic(path, json.dumps(asdict(values), default=np.ndarray.tolist))


def _read(path: Path, made: Callable[[dict[str, Any]], T]) -> T | None:
    try:
        return made(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"warning: {path} cannot be read ({error}); fitting this again")
        return None
