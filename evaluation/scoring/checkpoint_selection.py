"""The choice of a checkpoint without labels, and the verdict of the labels on such choices."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.data.extractor import Extractor, Features
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.probe_tasks import ProbeTask
from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.results.selection import CheckpointSelection
from evaluation.scoring.probe_results import predict
from evaluation.scoring.scores import auc, resampled_aucs
from evaluation.selection.choice import choose_checkpoint, goodness_of, judge
from evaluation.selection.unseen_images import UnseenImages, measure_checkpoints
from infra.monitoring.metrics import read_metrics
from ssl_core.views.spec import ViewSpec


def select_checkpoint(
    run: Path,
    views: ViewSpec,
    seed_of_views: int,
    images: UnseenImages,
    extractor: Extractor,
    features: Features,
    cases: Sequence[ProbeCase],
    fitted: FittedCases,
    *,
    resamples: int,
    seed: int,
) -> CheckpointSelection:
    """Choose a checkpoint without labels, and judge each measure by the test AUCs.

    Args:
        run: the run folder, for the logged loss
        views: those of the run, in the size of the probed images
        seed_of_views: seed of the run
        images: the images on which checkpoints are measured
        extractor: extracts features of augmented views
        features: features of all sources; only checkpoints are measured
        cases: all cases of the probe
        fitted: their fitted probes
        resamples: bootstrap resamples of the patients
        seed: seed of the resamples
    """
    checkpoints = {source: matrices for source, matrices in features.items() if source.kind == "checkpoint"}
    measured, left_out = measure_checkpoints(images, checkpoints, extractor, views, seed_of_views)
    good = goodness_of(measured, _last_losses(run, list(checkpoints)))
    verdicts = []
    for task, of_task in _checkpoint_cases(cases).items():
        predictions = [predict(case, fitted[case]) for case in of_task]
        verdicts += judge(
            good,
            list(measured),
            np.array([auc(item) for item in predictions]),
            np.stack([resampled_aucs(item, resamples=resamples, seed=seed) for item in predictions]),
            key=task.key,
        )
    chosen, why = choose_checkpoint(measured)
    return CheckpointSelection(images.description, images.count, measured, chosen, why, verdicts, left_out)


def _checkpoint_cases(cases: Sequence[ProbeCase]) -> dict[ProbeTask, list[ProbeCase]]:
    """Return the checkpoints' cases of each task, in the order of their steps."""
    by_task: dict[ProbeTask, list[ProbeCase]] = {}
    for case in cases:
        if case.kind == "checkpoint":
            by_task.setdefault(case.task, []).append(case)
    return by_task


def _last_losses(run: Path, checkpoints: Sequence[FeatureSource]) -> list[float] | None:
    """Return the last pretext loss logged before each checkpoint; None if a checkpoint has none."""
    logged = [(line["step"], line["loss"]) for line in read_metrics(run) if "loss" in line]
    before = [[loss for step, loss in logged if step <= (source.step or 0)] for source in checkpoints]
    return [losses[-1] for losses in before] if all(before) else None
