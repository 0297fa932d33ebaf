"""Probing a run: every checkpoint and control on every labelled dataset, by the paper's protocol and a stricter one."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from evaluation.data.feature_sources import (
    FeatureMatrix,
    FeatureSource,
    attributes,
    border,
    checkpoint_sources,
    concatenated,
    control_sources,
    extractor,
)
from evaluation.data.labeled_sets import ProbeTask, open_labeled_sets, open_probe_tasks, pretraining_samples
from evaluation.fitting.probe_cases import (
    FEW_PERCENT,
    ProbeCase,
    dataset_source_case,
    derived_case,
    few_labels_case,
    probe_case,
    shuffled_case,
)
from evaluation.fitting.ray_search import ray_session, search_with_ray
from evaluation.fitting.result_cache import cached_finetune, cached_probes
from evaluation.fitting.search import FittedProbe, Floats32, SearchProblem, search_serially
from evaluation.probe_config import ProbeConfig
from evaluation.results import results
from evaluation.results.notes import notes_on
from evaluation.results.presets import PRESETS
from evaluation.results.results import ProbeResult, Results, Run
from evaluation.results.selection import CheckpointSelection, write_selection
from evaluation.scoring.curves import Curves
from evaluation.scoring.probe_results import comparison, few_labels_result, finetuned_result, predictions, probe_result
from evaluation.scoring.scores import auc, resampled_aucs
from evaluation.selection.choice import choose_checkpoint, goodness_of, judge
from evaluation.selection.unseen_images import measure, unseen_images
from infra import config as configuration
from infra.extras import require_extra
from infra.files import locked
from infra.log import say
from infra.metrics import read_metrics
from infra.options import setting
from ssl_core.checkpoints.checkpoint import find_checkpoints
from ssl_core.pretraining.config import PretrainConfig

_AT_ONCE_BYTES: Final = 2 << 30  # of features in one search

Features = Mapping[FeatureSource, Mapping[str, FeatureMatrix]]  # of the datasets, by their labels


def probe(config: ProbeConfig, command: str = "") -> Results:
    """Probe the run and write its `results.json`; `command` is recorded there.

    Raises UserError for a run, dataset or option that cannot be probed, before any image is read where that can be
    known; RunFailed when a fit fails.
    """
    configuration.load(PretrainConfig, config.run_folder / "config.yaml")  # before the lock makes a folder there
    with locked(config.run_folder / "features", "probing"):
        return Prober(config, command).probe()


class Prober:
    """Probes a run, once or again when it has gone on; what was extracted and fitted before is not done again."""

    def __init__(self, config: ProbeConfig, command: str = "") -> None:
        """Open the run and divide the datasets; raises UserError for what cannot be probed."""
        if config.search == "ray":
            require_extra("ray", setting(config, "search"), instead="take --search=serial")
        self.config, self.command = config, command
        self.run = config.run_folder
        self.pretraining = configuration.load(PretrainConfig, self.run / "config.yaml")
        checkpoint_sources(self.run, self.pretraining, config.checkpoints)  # whether there are such shows now
        newest = find_checkpoints(self.run)[-1]
        self.opened = open_labeled_sets(config.data)
        self.seen = pretraining_samples(self.pretraining.data, newest.state.data_identity)
        self.targets = open_probe_tasks(
            self.opened,
            config.presets,
            self.seen,
            folder=self.run / "features",
            seed=config.seed,
            uncertain=config.uncertain,
            balance=config.balance,
            folds=config.folds,
            repeats=config.repeats,
            allow_overlap=config.allow_overlap,
        )
        self.extractor = extractor(self.run, self.pretraining, kind=config.executor, local_batch=config.local_batch)
        self.curves = Curves(self.run)
        self._features: dict[
            tuple[str, int], tuple[FeatureSource, Mapping[str, FeatureMatrix]]
        ] = {}  # by kind and step, in order

    def probe(self, *, whole: bool = True) -> Results:
        """Probe what is there and write `results.json`; not `whole`: without what only the last checkpoint is asked."""
        config, began = self.config, time.monotonic()
        features = self._extract()
        extracted = time.monotonic()
        entries = [one for target in self.targets for one in self._entries(target, features, whole)]
        few = self._few_labels(entries) if whole and config.few_labels else []
        solved = self._solve([*entries, *(one for _, _, one in few)])
        rows = [self._row(one, solved) for one in entries]
        rows += [self._finetuned(target, features) for target in self._to_finetune(features)] if whole else []
        found = Results(
            version=results.VERSION,
            sternum=version("sternum"),
            command=self.command,
            run=self._run(features),
            config=yaml.safe_load(configuration.to_yaml(config)),
            protocol={name: {**asdict(PRESETS[name]), "c_grid": list(PRESETS[name].c_grid)} for name in config.presets},
            datasets=[target.facts for target in self.targets],
            rows=rows,
            comparisons=self._comparisons(entries, solved),
            few_labels=[few_labels_result(one, solved[one.key], of.name, percent) for of, percent, one in few],
            timing={
                "features_s": round(extracted - began, 3),
                "search_s": round(time.monotonic() - extracted, 3),
            },
            notes=[],
        )
        found = replace(found, notes=notes_on(found))
        results.write_results(self.run, found)
        if whole and config.select:
            self._select(features, entries, solved)
        self.curves.show(rows)
        if whole:
            self.curves.show_hyperparameters((row, solved[one.key]) for row, one in zip(rows, entries, strict=True))
        return found

    def _extract(self) -> Features:
        """Return the features of all sources; a checkpoint that was probed and has since been removed keeps its own."""
        checkpoints = checkpoint_sources(self.run, self.pretraining, self.config.checkpoints)
        for source in (control_sources(self.pretraining) if self.config.controls else []) + checkpoints:
            key = source.kind, source.step or 0
            if key not in self._features:
                self._features[key] = source, self.extractor.features(source, self.opened)
        return dict(self._features.values())

    def _run(self, sources: Iterable[FeatureSource]) -> Run:
        return Run(
            backbone=self.pretraining.model.backbone,
            size_px=self.pretraining.views.size_px,
            global_batch=self.pretraining.data.global_batch,
            fraction_percent=self.pretraining.data.fraction_percent,
            epochs=max(source.epoch or 0.0 for source in sources),
            seed=self.pretraining.seed,
        )

    def _entries(self, target: ProbeTask, features: Features, whole: bool) -> Iterator[ProbeCase]:
        """Yield a target's rows to be: controls with features of their own, checkpoints, then derived controls."""
        label = target.packed.label
        own = [probe_case(target, source, stored[label]) for source, stored in features.items()]
        last = own[-1]
        for one in own:
            yield one
            if one.kind == "pixels":
                yield derived_case(one, "border of the image", "border", border(one.stored))
                told = attributes(target.packed.samples, target.cohort.rows)
                if told:
                    yield derived_case(one, "view, sex and age", "attributes", told)
        if whole and self.config.controls:
            yield shuffled_case(last, self.config.seed)
            others = self._one_of_each_dataset(target)
            if len(others) > 1:
                stored = list(features.values())[-1]
                yield dataset_source_case(others, stored, last, concatenated(stored))

    def _one_of_each_dataset(self, target: ProbeTask) -> list[ProbeTask]:
        """Return this target and one of every other dataset by the same preset; none for a second one of a dataset."""
        firsts: dict[str, ProbeTask] = {}
        for other in self.targets:
            if other.facts.preset == target.facts.preset:
                firsts.setdefault(other.packed.label, other)
        return list(firsts.values()) if any(one is target for one in firsts.values()) else []

    def _few_labels(self, entries: Sequence[ProbeCase]) -> list[tuple[ProbeCase, int, ProbeCase]]:
        """Return (of, percent, entry) for the last checkpoint and the controls with features of their own."""
        asked = [
            one
            for one in entries
            if one.preset.chooses_threshold and (one.kind in ("pixels", "untrained") or one is _last(entries, one))
        ]
        few = [(of, percent, few_labels_case(of, percent, self.config.seed)) for of in asked for percent in FEW_PERCENT]
        for dataset, percent in dict.fromkeys((of.dataset, percent) for of, percent, one in few if one is None):
            say(f"{dataset}: {percent} % of its labels are too few patients of a class; left out")
        return [(of, percent, one) for of, percent, one in few if one is not None]

    def _solve(self, entries: Sequence[ProbeCase]) -> dict[str, list[FittedProbe]]:
        """Return the classifiers of each entry, by its key, one a round."""
        solved: dict[str, list[FittedProbe]] = {}
        for some in _at_once(entries):
            problems = {one.key: list(one.problems()) for one in some}
            flat = [problem for of_entry in problems.values() for problem in of_entry]
            chosen = cached_probes(
                self.run / "features" / "probes",
                {one.stored.identity: one.stored.values for one in some},
                {name: problem for name, _, problem in flat},
                {name: identity for name, identity, _ in flat},
                self._search,
            )
            solved |= {key: [chosen[name] for name, _, _ in of_entry] for key, of_entry in problems.items()}
        return solved

    def _search(
        self, features: Mapping[str, Floats32], problems: Mapping[str, SearchProblem], name: str
    ) -> dict[str, FittedProbe]:
        if self.config.search == "serial":
            return search_serially(features, problems)
        used = {problem.features: features[problem.features] for problem in problems.values()}
        with ray_session(self.config.cores, self.config.address, sum(values.nbytes for values in used.values())):
            return search_with_ray(used, problems, storage=self.run / "features" / "search", name=name)

    def _row(self, one: ProbeCase, solved: Mapping[str, Sequence[FittedProbe]]) -> ProbeResult:
        samples = next(target.packed.samples for target in self.targets if _is_of(one, target))
        detailed = one.preset.chooses_threshold and one.kind not in ("shuffled", "source")
        return probe_result(
            one,
            solved[one.key],
            samples if detailed else None,
            resamples=self.config.bootstrap_resamples,
            seed=self.config.seed,
        )

    def _select(
        self, features: Features, entries: Sequence[ProbeCase], solved: Mapping[str, Sequence[FittedProbe]]
    ) -> None:
        """Choose a checkpoint without labels, judge such choices by the scores, and write `selection.json`."""
        checkpoints = {source: stored for source, stored in features.items() if source.kind == "checkpoint"}
        chosen = unseen_images(self.opened, self.seen)
        spec, seed = self.pretraining.views, self.pretraining.seed
        measured = measure(chosen, self.opened, checkpoints, self.extractor, spec, seed)
        good = goodness_of(measured, _losses(self.run, list(checkpoints)))
        verdicts = []
        for target in self.targets:
            of_target = [one for one in entries if _is_of(one, target) and one.kind == "checkpoint"]
            said = [predictions(one, solved[one.key]) for one in of_target]
            resampled = [
                resampled_aucs(one, resamples=self.config.bootstrap_resamples, seed=self.config.seed) for one in said
            ]
            verdicts += judge(
                good,
                list(measured),
                np.array([auc(one) for one in said]),
                np.stack(resampled),
                dataset=target.facts.label,
                preset=target.facts.preset,
            )
        name, why = choose_checkpoint(measured)
        write_selection(self.run, CheckpointSelection(chosen.who, chosen.images, measured, name, why, verdicts))

    def _to_finetune(self, features: Features) -> list[ProbeTask]:
        """Return the targets with one test part; in cross-validation a network would have to be trained for each."""
        if self.config.finetune.epochs == 0 or not any(source.kind == "checkpoint" for source in features):
            return []
        for target in self.targets:
            if target.facts.rounds > 1:
                say(f"{target.facts.label}, {target.facts.preset}: cross-validated, so nothing is fine-tuned there")
        return [target for target in self.targets if target.facts.rounds == 1]

    def _finetuned(self, target: ProbeTask, features: Features) -> ProbeResult:
        """Fine-tune the last checkpoint, or read what came of it before, and score it."""
        source, stored = list(features.items())[-1]
        one = probe_case(target, source, stored[target.packed.label])
        found = cached_finetune(
            self.run / "features" / "probes",
            one,
            source.backbone,
            target.packed,
            spec=self.pretraining.views,
            preprocessing=self.extractor.preprocessing,
            config=self.config.finetune,
            kind=self.config.executor,
            device=self.extractor.device,
            seed=self.config.seed,
        )
        return finetuned_result(one, found, resamples=self.config.bootstrap_resamples, seed=self.config.seed)

    def _comparisons(
        self, entries: Sequence[ProbeCase], solved: Mapping[str, Sequence[FittedProbe]]
    ) -> list[results.Comparison]:
        """Hold every dataset's last checkpoint against all else that was probed on the same classes."""
        return [
            comparison(
                last,
                one,
                predictions(last, solved[last.key]),
                predictions(one, solved[one.key]),
                resamples=self.config.bootstrap_resamples,
                seed=self.config.seed,
            )
            for one in entries
            if (last := _last(entries, one)) is not None and one is not last and one.kind not in ("shuffled", "source")
        ]


def _is_of(one: ProbeCase, target: ProbeTask) -> bool:
    return (one.dataset, one.preset_name) == (target.facts.label, target.facts.preset)


def _losses(run: Path, checkpoints: Sequence[FeatureSource]) -> list[float] | None:
    """Return the pretext loss that was logged last before each checkpoint; None where one has none."""
    logged = [(line["step"], line["loss"]) for line in read_metrics(run) if "loss" in line]
    before = [[loss for step, loss in logged if step <= (source.step or 0)] for source in checkpoints]
    return [losses[-1] for losses in before] if all(before) else None


def _last(entries: Sequence[ProbeCase], of: ProbeCase) -> ProbeCase | None:
    """Return the last checkpoint on the dataset and by the preset of an entry."""
    there = [one for one in entries if (one.dataset, one.preset_name) == (of.dataset, of.preset_name)]
    return max((one for one in there if one.kind == "checkpoint"), key=lambda one: one.step or 0, default=None)


def _at_once(entries: Sequence[ProbeCase]) -> Iterator[list[ProbeCase]]:
    """Divide entries so that the features of each part, which the search holds in memory once more, are bounded."""
    some: list[ProbeCase] = []
    held: dict[str, int] = {}
    for one in entries:
        size = one.stored.values.nbytes
        if some and one.stored.identity not in held and sum(held.values()) + size > _AT_ONCE_BYTES:
            yield some
            some, held = [], {}
        held[one.stored.identity] = size
        some.append(one)
    if some:
        yield some
