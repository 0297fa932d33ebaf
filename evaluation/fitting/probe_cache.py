"""On-disk cache of fitted probes and fine-tuned networks, keyed by a hash of their inputs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from evaluation.data.division import UNUSED
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import Preprocessing
from evaluation.fitting.finetune import FinetuneConfig, FinetunedNetwork, finetune
from evaluation.fitting.fit_log import DAMAGED, FitLog, classifier_of, unit_array
from evaluation.fitting.probe_cases import ProbeCase, Round
from evaluation.fitting.search import FittedProbe, SearchProblem
from infra.arrays import Float32, Int64
from infra.errors import UserError
from infra.files import read_regular, write_atomic
from infra.log import say
from ssl_core.views.spec import ViewSpec

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
    network = _read(path, partial(_finetuned_network, case.folds[0]))
    if network is None:
        labeled_set = case.task.labeled_set
        used = np.flatnonzero(case.folds[0] != UNUSED)
        network = finetune(
            source.backbone(),
            labeled_set.shards,
            ids=labeled_set.samples.ids[case.rows[used]],
            classes=case.classes[0][used],
            fold=case.folds[0][used],
            spec=spec,
            preprocessing=preprocessing,
            config=config,
            view_executor=view_executor,
            device=device,
            seed=seed,
        )
        network = replace(network, validation_rows=used[network.validation_rows])
        _write(path, network)
    return network


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


def _finetuned_network(fold: Int64, values: dict[str, Any]) -> FinetunedNetwork:
    validation_rows = np.flatnonzero(fold == 1)
    return FinetunedNetwork(
        probabilities=unit_array(values["probabilities"], int(np.sum(fold == -1))),
        validation=unit_array(values["validation"], len(validation_rows)),
        validation_rows=validation_rows,
        epoch=int(values["epoch"]),
        epoch_auc=float(values["epoch_auc"]),
    )


def _write(path: Path, record: FittedProbe | FinetunedNetwork) -> None:
    write_atomic(path, json.dumps(asdict(record), default=np.ndarray.tolist))


def _read(path: Path, build: Callable[[dict[str, Any]], T]) -> T | None:
    try:
        return build(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, UserError, *DAMAGED) as error:
        say(f"warning: {path} cannot be read ({error}); fitting again")
        return None
