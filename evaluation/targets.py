"""A labelled dataset as it is probed: its samples, its task's images, and the facts that stand beside the scores."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluation.features import Samples
from evaluation.protocol import Cohort, Uncertain, build_cohort, task_of
from evaluation.results import Dataset, Part
from infra.errors import RunFailed, UserError
from infra.log import progress
from sharding.manifest import Manifest, read_manifest
from sharding.source import Place, named
from sharding.stream import DataConfig, FetchConfig, ShardSet, packed_metadata


@dataclass(frozen=True)
class Target:
    """A dataset opened for probing."""

    shards: ShardSet
    manifest: Manifest
    samples: Samples
    cohort: Cohort
    facts: Dataset

    @property
    def label(self) -> str:
        """The dataset's name, with the word `simulated` where its images are."""
        return self.facts.label


def label_of(manifest: Manifest) -> str:
    """Return how a dataset is called in tables: simulated ones never by the bare name of the real one."""
    return f"{manifest.dataset} (simulated)" if is_simulated(manifest) else manifest.dataset


def is_simulated(manifest: Manifest) -> bool:
    """Return whether the packed images were drawn by a program."""
    return manifest.options.get("simulated") is True


def open_targets(
    folders: Sequence[Place],
    pretraining: DataConfig,
    data_identity: str,
    *,
    fetch: FetchConfig,
    folds: int,
    seed: int,
    uncertain: Uncertain,
    balanced: bool,
) -> list[Target]:
    """Open every folder of labelled shards; raises UserError for the first that cannot be probed."""
    manifests = [read_manifest(folder, fetch) for folder in folders]
    labels = [label_of(manifest) for manifest in manifests]
    for manifest, label in zip(manifests, labels, strict=True):
        task_of(manifest.dataset)
        if labels.count(label) > 1:
            raise UserError(f"two of the folders in shards hold the dataset {label!r}; name one of them")
    seen = _seen_in_pretraining(pretraining, data_identity, fetch)
    return [
        _open(ShardSet([folder], fetch=fetch), named(folder), manifest, seen, folds, seed, uncertain, balanced)
        for folder, manifest in zip(folders, manifests, strict=True)
    ]


@dataclass(frozen=True)
class _Seen:
    samples: npt.NDArray[np.uint64]
    patients: npt.NDArray[np.uint64]


def _seen_in_pretraining(data: DataConfig, data_identity: str, fetch: FetchConfig) -> _Seen | None:
    """Return the samples and patients that a run was pretrained on; None where its very shards are not to be had."""
    try:
        shards = ShardSet(data.shards, data.splits, data.fraction_percent, fetch)
        if shards.identity != data_identity:
            return None
        rows = np.concatenate([shards.index(number) for number in range(len(shards.shards))])
    except (UserError, RunFailed):
        return None
    return _Seen(rows["sample"], rows["patient"])


def _read_samples(shards: ShardSet, manifest: Manifest) -> Samples:
    index = np.concatenate([shards.index(number) for number in range(len(shards.shards))])
    with closing(packed_metadata(shards)) as metadata:
        known = list(progress(metadata, f"reading {manifest.dataset}", total=shards.samples, unit="sample"))
    return Samples(
        ids=index["sample"].copy(),
        patient_ids=index["patient"].copy(),
        patients=[values["patient"] for values in known],
        splits=[values["split"] for values in known],
        labels=[values["labels"] for values in known],
    )


def _open(
    shards: ShardSet,
    folder: str,
    manifest: Manifest,
    seen: _Seen | None,
    folds: int,
    seed: int,
    uncertain: Uncertain,
    balanced: bool,
) -> Target:
    samples = _read_samples(shards, manifest)
    cohort = build_cohort(manifest.dataset, samples, folds, seed, uncertain, balanced)
    tested = cohort.rows[cohort.in_test]
    facts = Dataset(
        label=label_of(manifest),
        name=manifest.dataset,
        folder=folder,
        identity=manifest.identity,
        simulated=is_simulated(manifest),
        positive=cohort.task.positive,
        negative=cohort.task.negative_name,
        split=cohort.split,
        development=_part(cohort, ~cohort.in_test),
        test=_part(cohort, cohort.in_test),
        excluded=cohort.excluded,
        shared_patients=cohort.shared_patients,
        pretrained_images=int(np.isin(samples.ids[tested], seen.samples).sum()) if seen else None,
        pretrained_patients=len(np.intersect1d(samples.patient_ids[tested], seen.patients)) if seen else None,
    )
    return Target(shards, manifest, samples, cohort, facts)


def _part(cohort: Cohort, inside: npt.NDArray[np.bool_]) -> Part:
    positive = int(cohort.classes[inside].sum())
    images = int(inside.sum())
    return Part(images, len(np.unique(cohort.patients[inside])), positive, images - positive)
