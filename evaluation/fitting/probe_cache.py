"""On-disk cache of fitted probes and fine-tuned networks, keyed by a hash of their inputs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing
from evaluation.fitting.finetune import FinetuneConfig, FinetunedNetwork, finetune
from evaluation.fitting.probe_cases import ProbeCase, Round
from evaluation.fitting.search import FittedProbe, SearchProblem
from infra.arrays import Float32
from infra.files import write_atomic
from infra.log import say
from ssl_core.views.spec import ViewSpec

T = TypeVar("T")

# Solves problems by name; takes the feature matrices by name, the problems, and a name for the search.
Search = Callable[[Mapping[str, Float32], Mapping[str, SearchProblem], str], dict[str, FittedProbe]]


def cached_probes(
    folder: Path, features: Mapping[str, Float32], rounds: Sequence[Round], search: Search
) -> dict[str, FittedProbe]:
    """Read fitted probes from a folder; search for the missing ones and store them.

    Args:
        folder: folder of the cache
        features: feature matrices (N, D) by name
        rounds: the rounds to solve
        search: solves the missing rounds; the name of the search is a hash of their identities

    Returns:
        The fitted probe of every round, by its name. A damaged file counts as missing, with a warning.
    """
    paths = {item.name: folder / f"{item.identity[:32]}.json" for item in rounds}
    cached = {name: _read(path, _fitted_probe) for name, path in paths.items()}
    missing = [item for item in rounds if cached[item.name] is None]
    search_name = hashlib.sha256("".join(sorted(item.identity for item in missing)).encode()).hexdigest()[:32]
    fitted = search(features, {item.name: item.problem for item in missing}, search_name) if missing else {}
    for name, probe in fitted.items():
        _write(paths[name], probe)
    return {name: fitted[name] if probe is None else probe for name, probe in cached.items()}


def cached_finetune(
    folder: Path,
    case: ProbeCase,
    source: FeatureSource,
    *,
    spec: ViewSpec,
    preprocessing: Preprocessing,
    config: FinetuneConfig,
    view_executor: str,
    device: torch.device,
    seed: int,
) -> FinetunedNetwork:
    """Read a fine-tuned network's predictions from a folder, or fine-tune and store them.

    Args:
        folder: folder of the cache
        case: a case with one round
        source: the backbone that training starts from
        spec: views of the pretraining
        preprocessing: input of the backbone
        config: options of the fine-tuning
        view_executor: image decoder: auto, dali or torchvision
        device: device on which the network is trained
        seed: seed of order and views
    """
    [(_, identity, _)] = case.rounds()
    digest = hashlib.sha256(f"finetune {identity} {spec} {config} {seed}".encode()).hexdigest()
    path = folder / f"{digest[:32]}.json"
    network = _read(path, _finetuned_network)
    if network is None:
        labeled_set = case.task.labeled_set
        network = finetune(
            source.backbone(),
            labeled_set.shards,
            ids=labeled_set.samples.ids[case.rows],
            classes=case.classes[0],
            fold=case.folds[0],
            spec=spec,
            preprocessing=preprocessing,
            config=config,
            view_executor=view_executor,
            device=device,
            seed=seed,
        )
        _write(path, network)
    return network


def _fitted_probe(values: dict[str, Any]) -> FittedProbe:
    arrays = {name: np.array(values[name], np.float64) for name in ("validation", "probabilities")}
    return FittedProbe(**values | arrays | {"aucs": {float(c): auc for c, auc in values["aucs"].items()}})


def _finetuned_network(values: dict[str, Any]) -> FinetunedNetwork:
    arrays = {name: np.array(values[name], np.float64) for name in ("validation", "probabilities")}
    return FinetunedNetwork(**values | arrays | {"validation_rows": np.array(values["validation_rows"], np.int64)})


def _write(path: Path, record: FittedProbe | FinetunedNetwork) -> None:
    write_atomic(path, json.dumps(asdict(record), default=np.ndarray.tolist))


def _read(path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
    try:
        return build(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"warning: {path} cannot be read ({error}); fitting again")
        return None
