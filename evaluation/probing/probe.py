"""A probe: each checkpoint or backbone and its controls on each labeled dataset, by two protocols."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version

import yaml

from evaluation.data.extractor import Features, build_extractor
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.joined_sets import with_joined
from evaluation.data.kept_backbones import kept_backbone
from evaluation.data.labeled_sets import open_labeled_sets
from evaluation.data.overlap import seen_by_pretraining
from evaluation.data.parallel_extraction import ParallelExtractor
from evaluation.data.probe_tasks import TaskOptions, open_probe_tasks
from evaluation.data.subjects import Subject
from evaluation.data.task_choice import choose_tasks
from evaluation.fitting.case_list import FewLabelsCase, list_cases, list_few_labels, list_shifts
from evaluation.fitting.control_cases import ShiftCase
from evaluation.fitting.draws import grouped_by_row
from evaluation.fitting.finetuning.images import Inputs
from evaluation.fitting.finetuning.tasks import FinetunedLabel, Finetuner
from evaluation.fitting.fit_cases import CaseFitter, FittedCases
from evaluation.fitting.probe_cases import KEPT_KINDS, ProbeCase
from evaluation.pictures.pictures import remove_pictures, show_attention, write_pictures
from evaluation.pictures.probed import Probed
from evaluation.probing.config import ProbeConfig
from evaluation.probing.opened_subject import open_subject
from evaluation.results.kept_probes import KeptBackbone, write_kept_probes
from evaluation.results.notes import notes_on
from evaluation.results.predictions import write_predictions
from evaluation.results.presets import PRESETS
from evaluation.results.replaced import warn_of_lost_results
from evaluation.results.results import VERSION, Results, write_results
from evaluation.results.rows import ProbeResult
from evaluation.results.selection import write_selection
from evaluation.scoring.attribute_aucs import attribute_aucs
from evaluation.scoring.checkpoint_selection import select_checkpoint
from evaluation.scoring.image_predictions import image_predictions
from evaluation.scoring.kept_probes import kept_probes
from evaluation.scoring.probe_results import (
    compare_with_last,
    few_labels_result,
    finetuned_result,
    probe_result,
)
from evaluation.scoring.shift import shift_result
from evaluation.scoring.task_results import task_scores
from evaluation.scoring.tensorboard_curves import Curves
from evaluation.selection.unseen_images import UnseenImages, unseen_images
from infra.configuration import config as configuration
from infra.configuration.options import key, setting
from infra.extras import require_extra
from infra.storage.files import remove_remains
from infra.storage.locks import locked
from ssl_core.pretraining.config import PretrainConfig


def probe(config: ProbeConfig, command: str = "") -> Results:
    """Probe a run, or backbones without one, and write `results.json`.

    Args:
        config: the options
        command: the command line, recorded in the results

    Returns:
        The results.

    Raises:
        UserError: for a run, backbone, dataset or option that cannot be probed, if possible before any image is read.
        RunFailed: if a fit fails.
    """
    subject = open_subject(config)  # before the lock creates a folder
    with locked(subject.folder / "features", "probing"):
        return Prober(config, subject, command).probe()


_Identity = tuple[str, str, int | None, int | None]  # of a feature source


def _identity(source: FeatureSource) -> _Identity:
    """Return kind, name of compared weights, step and seed; the name of a checkpoint depends on the others."""
    return source.kind, source.name if source.kind == "compared" else "", source.step, source.seed


class Prober:
    """Probes a subject: a run, once or repeatedly while it trains, or backbones. Nothing is extracted or fitted twice.

    The caller holds the lock of `features/`.
    """

    def __init__(self, config: ProbeConfig, subject: Subject, command: str = "") -> None:
        """Remove what a killed probe left unfinished, divide the datasets, and say which results will be replaced.

        Raises:
            UserError: for a dataset or option that cannot be probed.
        """
        if config.search == "ray":
            require_extra("ray", setting(config, "search"), instead=f"use {key(config, 'search')}=serial")
        self.config, self.subject, self.command = config, subject, command
        self.folder = subject.folder / "features"
        for folder in (self.folder, self.folder / "probes"):
            remove_remains(folder)
        self._controls = subject.controls() if config.controls else []
        self.labeled_sets = open_labeled_sets(config.data)
        self.lineage = subject.lineage(config.data.fetch)
        self.seen = seen_by_pretraining(self.labeled_sets, self.lineage, self.folder)
        self.divided = open_probe_tasks(
            self.labeled_sets,
            choose_tasks(self.labeled_sets, config.tasks, config.positive),
            self.seen,
            TaskOptions(
                presets=config.presets,
                folder=self.folder,
                seed=config.seed,
                train_on=config.train_on,
                test_on=config.test_on,
                exclude=config.exclude,
                uncertain=config.uncertain,
                balance=config.balance,
                split=config.split,
                folds=config.folds,
                repeats=config.repeats,
                allow_overlap=config.allow_overlap,
            ),
        )
        warn_of_lost_results(subject.folder, [task.key for task in self.divided])
        self.tasks = [question for task in self.divided for question in task.questions]
        self.extractor = build_extractor(
            self.folder,
            subject.input,
            antialias=subject.views.antialias,
            fit=config.probe_fit,
            mirrored=config.mirrored,
            view_executor=config.executor,
            local_batch=config.local_batch,
        )
        # Refused now rather than after the probe.
        self.unseen = self._unseen_images(subject.pretraining) if config.select and subject.pretraining else None
        self.fitter = CaseFitter(self.folder, config.search, config.cores, config.address)
        self.curves = Curves(subject.folder)
        # In order, so that a checkpoint that was removed after it was probed keeps its row.
        self._extracted: dict[_Identity, tuple[FeatureSource, Mapping[str, FeatureMatrix]]] = {}
        self._with_attention: set[int] = set()  # steps of checkpoints
        self._backbones: dict[str, KeptBackbone] = {}  # by the names of their features

    def probe(self, *, final: bool = True) -> Results:
        """Probe the present checkpoints and write `results.json`.

        Args:
            final: include everything that concerns only the last checkpoint of a run: shuffled labels, few labels,
                fine-tuning, and the selection of a checkpoint

        Returns:
            The results.

        Raises:
            UserError: if a chosen checkpoint is missing or its features are not finite
            RunFailed: if a checkpoint or an image is damaged, or a fit fails
        """
        config, began = self.config, time.monotonic()
        features = self._extract()
        extracted = time.monotonic()
        cases = list_cases(self.tasks, features, last_controls=final and config.controls, seed=config.seed)
        few_labels = list_few_labels(cases, config.seed) if final and config.few_labels else []
        shifts = list_shifts(cases, config.seed) if final and config.controls else []
        of_shifts = [case for shift in shifts for case in (shift.case, shift.null)]
        fitted = self.fitter.fit([*cases, *(case for few in few_labels for case in few.cases), *of_shifts])
        grouped = grouped_by_row(cases)
        rows = [probe_result(row, fitted, **self._bootstrap) for row in grouped]
        finetuned = self._finetune(list(features)[-1], cases) if final else {}
        rows_finetuned = [finetuned_result(case, label, **self._bootstrap) for case, label in finetuned.items()]
        results = self._results(features, [*rows, *rows_finetuned], cases, few_labels, shifts, fitted, finetuned)
        results = replace(
            results,
            timing={
                "features_s": round(extracted - began, 3),
                "search_s": round(time.monotonic() - extracted, 3),
            },
            predictions=write_predictions(self.subject.folder, image_predictions(cases, fitted, finetuned)),
        )
        write_kept_probes(self.subject.folder, kept_probes(cases, fitted, self._backbones))
        remove_pictures(self.subject.folder)  # those of an earlier probe would stand beside new results
        write_results(self.subject.folder, results)
        self.curves.show(results.rows)
        if final:
            self.curves.show_classifiers(zip(rows, grouped, strict=True), fitted)
        if config.pictures and list(features)[-1].kind == "checkpoint":
            self._draw(
                Probed(features, cases, fitted, self.extractor, self.subject.untrained, **self._bootstrap), final
            )
        if final and self.unseen is not None and self.subject.pretraining is not None:
            self._select(self.subject.pretraining, self.unseen, features, cases, fitted)
        return results

    @property
    def _bootstrap(self) -> dict[str, int]:
        return {"resamples": self.config.bootstrap_resamples, "seed": self.config.seed}

    def _draw(self, probed: Probed, final: bool) -> None:
        if final:
            write_pictures(self.subject.folder, probed)
        show_attention(probed, self.curves, self._with_attention)

    def _extract(self) -> Features:
        """Return the features of all sources, controls first."""
        new = {
            identity: source
            for source in [*self._controls, *self.subject.sources()]
            if (identity := _identity(source)) not in self._extracted
        }
        features = ParallelExtractor(self.extractor, self.config.address).features(
            list(new.values()), self.labeled_sets
        )
        probed_sets = [task.labeled_set for task in self.tasks]
        self._extracted |= {
            identity: (source, with_joined(features[source], probed_sets)) for identity, source in new.items()
        }
        self._backbones |= {
            source.name: self._kept_backbone(source) for source in new.values() if source.kind in KEPT_KINDS
        }
        return dict(self._extracted.values())

    def _kept_backbone(self, source: FeatureSource) -> KeptBackbone:
        preprocessing = self.extractor.fitting(source).preprocessing
        return kept_backbone(self.subject.folder, source, preprocessing, self.subject.records)

    def _results(
        self,
        sources: Iterable[FeatureSource],
        rows: list[ProbeResult],
        cases: Sequence[ProbeCase],
        few_labels: Sequence[FewLabelsCase],
        shifts: Sequence[ShiftCase],
        fitted: FittedCases,
        finetuned: Mapping[ProbeCase, FinetunedLabel],
    ) -> Results:
        presets = self.config.presets
        tasks, means = task_scores(self.divided, cases, fitted, finetuned, **self._bootstrap)
        results = Results(
            version=VERSION,
            sternum=version("sternum"),
            command=self.command,
            run=self.subject.describe(sources, self.lineage),
            config=yaml.safe_load(configuration.to_yaml(self.config)),
            protocol={name: {**asdict(PRESETS[name]), "c_grid": list(PRESETS[name].c_grid)} for name in presets},
            datasets=[task.record for task in self.tasks],
            rows=rows,
            comparisons=[*compare_with_last(cases, fitted, finetuned, **self._bootstrap), *means],
            few_labels=[few_labels_result(few, fitted) for few in few_labels],
            timing={},
            notes=[],
            tasks=tasks,
            shifts=[shift_result(shift, fitted, **self._bootstrap) for shift in shifts],
            outside=[replace(item, trainings=self.lineage.records_of(item.name)) for item in self.subject.records],
            attribute_aucs=attribute_aucs(cases, **self._bootstrap) if self.config.controls else [],
        )
        return replace(results, notes=notes_on(results))

    def _finetune(self, source: FeatureSource, cases: Sequence[ProbeCase]) -> dict[ProbeCase, FinetunedLabel]:
        """Fine-tune the last checkpoint on each task, or read the networks that an earlier probe has kept."""
        if self.config.finetune.epochs == 0 or source.kind != "checkpoint":
            return {}
        given = self.extractor
        inputs = Inputs(self.subject.views, given.preprocessing, self.config.executor, given.device)
        finetuner = Finetuner(self.subject.folder / "finetuned", inputs, self.config.finetune, self.config.seed)
        return finetuner.finetune(self.divided, cases, source)

    def _unseen_images(self, pretraining: PretrainConfig) -> UnseenImages:
        data, fetch = pretraining.data, self.config.data.fetch
        return unseen_images(self.labeled_sets, self.tasks, self.seen, self.lineage, data, fetch, self.config.seed)

    def _select(
        self,
        pretraining: PretrainConfig,
        images: UnseenImages,
        features: Features,
        cases: Sequence[ProbeCase],
        fitted: FittedCases,
    ) -> None:
        selection = select_checkpoint(
            self.subject.folder,
            self.subject.views,
            pretraining.seed,
            images,
            self.extractor,
            features,
            cases,
            fitted,
            **self._bootstrap,
        )
        write_selection(self.subject.folder, selection)
