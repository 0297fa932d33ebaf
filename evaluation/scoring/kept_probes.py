"""The fitted probes that a run keeps for images that come later."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from evaluation.fitting.fit_cases import FittedCases
from evaluation.fitting.probe_cases import ProbeCase
from evaluation.fitting.search import FittedProbe
from evaluation.results.kept_probes import KeptBackbone, KeptProbe, ProbeNumbers
from evaluation.scoring.calibration import platt
from evaluation.scoring.probe_results import thresholds
from sharding.images.encoding import encoding_of


def kept_probes(
    cases: Sequence[ProbeCase], fitted: FittedCases, backbones: Mapping[str, KeptBackbone]
) -> Iterator[tuple[KeptProbe, ProbeNumbers]]:
    """Yield each probe whose features serve new images: of checkpoints and of compared backbones.

    Args:
        cases: the probe cases, in the order of the rows
        fitted: the fitted probes of each case
        backbones: the networks by the names of their features
    """
    for case in cases:
        if case.keeps_classifier:
            yield _described(case, fitted[case], backbones[case.name]), _numbers(case, fitted[case])


def _described(case: ProbeCase, probes: Sequence[FittedProbe], backbone: KeptBackbone) -> KeptProbe:
    task, manifest = case.task, case.task.labeled_set.manifest
    develops = (case.folds >= 0).any(axis=0)
    return KeptProbe(
        dataset=case.key.dataset,
        preset=case.key.preset,
        features=case.name,
        kind=case.kind,
        step=case.step,
        epoch=case.epoch,
        task=task.record.task,
        task_kind=task.cohort.task.kind,
        question=task.record.question,
        positive=task.record.positive,
        negative=task.record.negative,
        backbone=backbone,
        encoding=encoding_of(manifest.options),
        set=manifest.name,
        set_identity=manifest.identity,
        features_file=f"features/{(case.matrix.first or case.matrix.identity)[:32]}.safetensors",
        c=[probe.c for probe in probes],
        threshold=thresholds(case, probes),
        calibration=_platt(case, probes) if case.preset.chooses_threshold else [],
        images=int(develops.sum()),
        patients=len(np.unique(case.patients[develops])),
        positives=int(case.task.cohort.classes[develops].sum()),
    )


def _platt(case: ProbeCase, probes: Sequence[FittedProbe]) -> list[tuple[float, float]]:
    """Return slope and intercept of each round, from its own out-of-fold probabilities, as the report calibrates."""
    return [
        platt(classes[fold >= 0], probe.validation)
        for classes, fold, probe in zip(case.classes, case.folds, probes, strict=True)
    ]


def _numbers(case: ProbeCase, probes: Sequence[FittedProbe]) -> ProbeNumbers:
    develops = (case.folds >= 0).any(axis=0)
    classifiers = [probe.classifier for probe in probes if probe.classifier is not None]
    assert len(classifiers) == len(probes), "the fits of a kept case return their classifiers"
    return ProbeNumbers(classifiers, case.rows[develops], case.patients[develops])
