"""Probing a run: every checkpoint and control on every labelled dataset, by the paper's protocol."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import yaml
from torch import nn

from evaluation import results
from evaluation.features import Preprocessing, RawPixels, extract, fingerprint, load_stored, require_finite, store
from evaluation.protocol import C_GRID, Uncertain
from evaluation.results import Results, Row
from evaluation.scores import score
from evaluation.search import Problem, Trial, fit, local_ray, probabilities, search_serially, search_with_ray
from evaluation.targets import Target, open_targets
from infra import config as configuration
from infra.errors import UserError, require
from infra.files import locked
from infra.log import progress, say
from infra.processes import Ranks, device_of
from sharding.stream import FetchConfig
from ssl_core.batches import image_batches
from ssl_core.checkpoint import Checkpoint, find_checkpoints, load_backbone
from ssl_core.model import untrained_backbone
from ssl_core.train import PretrainConfig
from ssl_core.views import ViewTask, executor


@dataclass(frozen=True)
class ProbeConfig:
    """Frozen features, logistic regressions, and the paper's Table III with its controls.

    Args:
        run_folder: the run whose checkpoints are probed; results.json goes there
        shards: folders of labelled shards, or URLs of such, each of one dataset
        checkpoints: all, last, or the epochs to probe, such as [10,25,50,100]
        controls: also probe the untrained backbone and 32 x 32 raw pixels, without which no score means much
        executor: what decodes: dali, torchvision, or auto (DALI where it is installed)
        local_batch: images that go through the backbone at once
        search: ray (Ray Tune on all cores) or serial (in this process); the results are the same
        cores: cores for Ray, all by default
        c_grid: values of C to choose from
        folds: of the cross-validation that chooses C
        max_iterations: of a logistic regression; 100 is scikit-learn's default and so the paper's
        bootstrap_resamples: of the patients, for the interval of the AUC; 0 for none
        uncertain: what a positive label of -1 counts as: ignore (its image is left out), zeros or ones
        balanced: take as many patients of each class, none for both (the paper's task on ChestX-ray14)
        seed: determines folds, the split where there is no official one, and the bootstrap
        fetch: how shards that are not on this machine are fetched and kept
    """

    run_folder: Path
    shards: list[str]
    checkpoints: Literal["all", "last"] | list[int] = "all"
    controls: bool = True
    executor: Literal["auto", "dali", "torchvision"] = "auto"
    local_batch: int = 64
    search: Literal["ray", "serial"] = "ray"
    cores: int | None = None
    c_grid: list[float] = field(default_factory=lambda: list(C_GRID))
    folds: int = 5
    max_iterations: int = 100
    bootstrap_resamples: int = 1000
    uncertain: Uncertain = "ignore"
    balanced: bool = False
    seed: int = 0
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        require(bool(self.shards), "shards=[] must name at least one folder; try --shards=[shards/cell]")
        require(self.local_batch >= 1, f"local_batch={self.local_batch} must be at least 1; try 64")
        require(self.cores is None or self.cores >= 1, f"cores={self.cores} must be at least 1; leave it out for all")
        require(
            bool(self.c_grid) and min(self.c_grid) > 0 and len(set(self.c_grid)) == len(self.c_grid),
            f"c_grid={self.c_grid} must hold different positive numbers; the paper's are {list(C_GRID)}",
        )
        require(
            self.controls or self.checkpoints != [],
            "checkpoints=[] and controls=false leave nothing to probe; name an epoch, or all",
        )
        require(self.folds >= 2, f"folds={self.folds} must be at least 2; try 5")
        require(self.max_iterations >= 1, f"max_iterations={self.max_iterations} must be at least 1; try 100")
        require(
            self.bootstrap_resamples == 0 or self.bootstrap_resamples >= 100,
            f"bootstrap_resamples={self.bootstrap_resamples} must be 0 or at least 100; try 1000",
        )
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be between 0 and 2^63 - 1; use 0")


@dataclass(frozen=True)
class _Source:
    """Where features come from: a checkpoint of the run or a control."""

    name: str
    kind: Literal["checkpoint", "untrained", "pixels"]
    backbone: Callable[[], nn.Module]
    epoch: float | None = None
    step: int | None = None


def probe(config: ProbeConfig, command: str = "") -> Results:
    """Probe the run and write its `results.json`; `command` is recorded there.

    Raises UserError for a run, dataset or option that cannot be probed, before any image is read where that can be
    known; RunFailed when a fit fails.
    """
    began = time.monotonic()
    pretraining = configuration.load(PretrainConfig, config.run_folder / "config.yaml")
    sources = _sources(config, pretraining)
    targets = open_targets(
        config.shards,
        pretraining.data,
        find_checkpoints(config.run_folder)[-1].state.data_identity,
        fetch=config.fetch,
        folds=config.folds,
        seed=config.seed,
        uncertain=config.uncertain,
        balanced=config.balanced,
    )
    with locked(config.run_folder / "features", "probing"):
        files = _extract_all(config, pretraining, sources, targets)
        extracted = time.monotonic()
        rows: list[Row] = []
        with _ray_if_asked(config, targets, files):
            ready = time.monotonic()
            for target in targets:
                rows += _probe_target(config, target, sources, files)
        found = Results(
            version=results.VERSION,
            sternum=version("sternum"),
            command=command,
            config=yaml.safe_load(configuration.to_yaml(config)),
            protocol=_protocol(config),
            datasets=[target.facts for target in targets],
            rows=rows,
            paper=results.paper_rows([target.facts for target in targets]),
            timing={
                "features_s": round(extracted - began, 3),
                "search_start_s": round(ready - extracted, 3),
                "search_s": round(time.monotonic() - ready, 3),
            },
            notes=results.notes_on([target.facts for target in targets], rows),
        )
        results.write_results(config.run_folder, found)
    return found


def _sources(config: ProbeConfig, pretraining: PretrainConfig) -> list[_Source]:
    controls = [
        _Source("32 x 32 raw pixels", "pixels", RawPixels),
        _Source("untrained backbone", "untrained", lambda: untrained_backbone(pretraining.model, pretraining.seed)),
    ]
    chosen = _chosen(config, find_checkpoints(config.run_folder))
    names = [f"epoch {round(checkpoint.epoch, 2):g}" for checkpoint in chosen]
    checkpoints = [
        _Source(
            name if names.count(name) == 1 else f"{name}, step {checkpoint.step}",
            "checkpoint",
            partial(load_backbone, checkpoint),
            checkpoint.epoch,
            checkpoint.step,
        )
        for name, checkpoint in zip(names, chosen, strict=True)
    ]
    return (controls if config.controls else []) + checkpoints


def _chosen(config: ProbeConfig, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints asked for; an epoch is the first checkpoint after so many whole epochs."""
    if not checkpoints:
        raise UserError(f"{config.run_folder} holds no checkpoint; pretrain first: sternum pretrain --help")
    if config.checkpoints == "all":
        return list(checkpoints)
    if config.checkpoints == "last":
        return [checkpoints[-1]]
    chosen = []
    for epoch in config.checkpoints:
        of_epoch = [checkpoint for checkpoint in checkpoints if int(checkpoint.epoch) == epoch]
        if not of_epoch:
            there = ", ".join(f"{checkpoint.epoch:g}" for checkpoint in checkpoints)
            raise UserError(
                f"checkpoints: {config.run_folder} has none of epoch {epoch}; its checkpoints are of {there}"
            )
        chosen.append(of_epoch[0])
    return chosen


Files = Mapping[tuple[str, str], Path]  # (target, source) -> stored features


def _extract_all(
    config: ProbeConfig, pretraining: PretrainConfig, sources: Sequence[_Source], targets: Sequence[Target]
) -> Files:
    """Make sure that every source's features of every target are stored."""
    device = device_of(Ranks())
    preprocessing = _preprocessing(config, pretraining, device)
    files: dict[tuple[str, str], Path] = {}
    for source in sources:
        backbone = source.backbone()
        for target in targets:
            name = fingerprint(backbone, target.manifest.identity, preprocessing)
            path = config.run_folder / "features" / f"{name[:32]}.safetensors"
            files[target.label, source.name] = path
            if load_stored(path, target.samples.ids) is not None:
                continue
            what = f"{source.name} on {target.label}"
            with closing(
                image_batches(
                    target.shards,
                    preprocessing.size_px,
                    local_batch=config.local_batch,
                    mean=preprocessing.mean,
                    std=preprocessing.std,
                    kind=config.executor,
                    device=device,
                )
            ) as batches:
                images = (batch.views[0] for batch in batches)
                total = -(-target.shards.samples // config.local_batch)
                values = extract(backbone, progress(images, what, total, unit="batch"), device)
            require_finite(values, what)
            store(path, values, target.samples.ids)
    return files


def _preprocessing(config: ProbeConfig, pretraining: PretrainConfig, device: torch.device) -> Preprocessing:
    """Return the input that the backbones were trained on: their size, their normalisation."""
    trained = find_checkpoints(config.run_folder)[-1].state
    task = ViewTask(pretraining.views.size_px, 1, trained.pixel_mean, trained.pixel_std, max_batch=1, device=device)
    made_by = executor(config.executor, task)
    return Preprocessing(pretraining.views.size_px, trained.pixel_mean, trained.pixel_std, type(made_by).__name__)


@contextmanager
def _ray_if_asked(config: ProbeConfig, targets: Sequence[Target], files: Files) -> Iterator[None]:
    if config.search == "serial":
        yield
        return
    shared_bytes = max(
        sum(path.stat().st_size for (label, _), path in files.items() if label == target.label) for target in targets
    )
    say("starting Ray on this machine")
    with local_ray(config.cores, shared_bytes):
        yield


def _probe_target(config: ProbeConfig, target: Target, sources: Sequence[_Source], files: Files) -> list[Row]:
    """Choose each source's C in the development part, then fit once on all of it and score once on the test part."""
    cohort = target.cohort
    values = {}
    for source in sources:
        stored = load_stored(files[target.label, source.name], target.samples.ids)
        assert stored is not None, "the features were stored a moment ago"
        values[source.name] = stored[cohort.rows]
    inside = ~cohort.in_test
    problems = {
        name: Problem(features[inside], cohort.classes[inside], cohort.fold[inside])
        for name, features in values.items()
    }
    search = search_with_ray if config.search == "ray" else search_serially
    trials = search(problems, config.c_grid, config.max_iterations)
    rows = []
    for source in progress(sources, f"scoring on {target.label}", unit="fit"):
        own = [trial for trial in trials if trial.problem == source.name]
        c, validation_auc = best_c(own)
        problem, tested = problems[source.name], cohort.in_test
        model, converged = fit(problem.values, problem.classes, c, config.max_iterations)
        scores = score(
            cohort.classes[tested],
            probabilities(model, values[source.name][tested]),
            cohort.patients[tested],
            resamples=config.bootstrap_resamples,
            seed=config.seed,
        )
        rows.append(
            Row(
                dataset=target.label,
                features=source.name,
                kind=source.kind,
                epoch=source.epoch,
                step=source.step,
                size=problem.values.shape[1],
                c=c,
                validation_auc=validation_auc,
                scores=scores,
                fits=len(own),
                unconverged=sum(not trial.converged for trial in own),
                final_converged=converged,
            )
        )
    return rows


def best_c(trials: Sequence[Trial]) -> tuple[float, float]:
    """Return the C of the highest mean validation AUC over the folds, and that AUC; the smaller C of equal ones."""
    tried = sorted({trial.c for trial in trials})
    means = {c: float(np.mean([trial.auc for trial in trials if trial.c == c])) for c in tried}
    best = max(means, key=lambda c: means[c])
    return best, means[best]


def _protocol(config: ProbeConfig) -> dict[str, object]:
    return {
        "classifier": "scikit-learn LogisticRegression, lbfgs, L2, features unscaled",
        "class_weight": "balanced",
        "c_grid": config.c_grid,
        "c_chosen_by": f"mean validation AUC, stratified {config.folds}-fold grouped by patient, development part only",
        "max_iterations": config.max_iterations,
        "threshold": 0.5,
        "interval": f"95 % percentile bootstrap over patients, {config.bootstrap_resamples} resamples",
        "test_part": "scored once by one fit on the whole development part",
    }
