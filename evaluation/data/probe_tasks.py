"""Tasks to probe: each labeled dataset as each preset divides it, with a record of its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.data.cohort import Cohort, build_cohort
from evaluation.data.features import load_stored, store
from evaluation.data.labeled_sets import LabeledSet, PretrainingSamples, is_simulated
from evaluation.results.presets import PRESETS, Balance, Preset, PresetName, Uncertain, task_of
from evaluation.results.results import Dataset, PartSize, TaskKey
from infra.arrays import Bool, Int64
from infra.errors import UserError
from infra.urls import shown
from sharding.auditing.duplicates import near_duplicate_groups


@dataclass(frozen=True, eq=False)
class ProbeTask:
    """The classification task of a labeled dataset as one preset divides it; compared by identity.

    Attributes:
        labeled_set: the dataset
        cohort: its images that belong to the task, and their parts
        preset: the protocol
        record: the task's record in the results
    """

    labeled_set: LabeledSet
    cohort: Cohort
    preset: Preset
    record: Dataset

    @property
    def key(self) -> TaskKey:
        """Key of the rows that score this task."""
        return self.record.key


def open_probe_tasks(
    labeled_sets: Sequence[LabeledSet],
    presets: Sequence[PresetName],
    seen: PretrainingSamples | None,
    *,
    folder: Path,
    seed: int,
    uncertain: Uncertain,
    balance: Balance | None,
    folds: int | None,
    repeats: int,
    allow_overlap: bool,
) -> list[ProbeTask]:
    """Divide every dataset by every preset.

    Args:
        labeled_sets: the datasets
        presets: names of the presets
        seen: samples that the run was pretrained on, if known
        folder: folder of the stored groups of near-identical images
        seed: determines parts and folds
        uncertain: meaning of an uncertain positive label
        balance: replaces the balances of the tasks
        folds: replaces the folds of the presets
        repeats: repetitions of the cross-validation
        allow_overlap: accept test parts that pretraining saw

    Raises:
        UserError: if a dataset cannot be divided, or if pretraining saw its test part and `allow_overlap` is false.
    """
    tasks = []
    for labeled_set in labeled_sets:
        balances = [balance] if balance else task_of(labeled_set.manifest.dataset).balances
        for number, balanced_by in enumerate(balances):
            for name in presets:
                preset = PRESETS[name]
                cohort = build_cohort(
                    labeled_set.manifest.dataset,
                    labeled_set.samples,
                    preset,
                    seed=seed,
                    uncertain=uncertain,
                    balance=balanced_by,
                    groups=_groups(labeled_set, folder) if preset.groups_duplicates else None,
                    folds=folds,
                    repeats=repeats,
                )
                label = labeled_set.label + (f", balanced by {balanced_by}" if number else "")
                record = _record(labeled_set, cohort, TaskKey(label, name), balanced_by, seen)
                _require_unseen(record, allow_overlap)
                tasks.append(ProbeTask(labeled_set, cohort, preset, record))
    return tasks


def _groups(labeled_set: LabeledSet, folder: Path) -> Int64:
    """Return (N,) one code for all samples connected by a shared patient or by near-identical images."""
    ids = labeled_set.samples.ids
    path = folder / f"{labeled_set.manifest.identity[:32]}-near-duplicates.safetensors"
    duplicates = load_stored(path, ids)
    if duplicates is None:
        packed_ids, duplicates = near_duplicate_groups([labeled_set.location], fetch=labeled_set.shards.fetch)
        assert np.array_equal(packed_ids, ids), "both are in packed order"
        store(path, duplicates, ids)
    patients = np.unique(labeled_set.samples.patient_ids, return_inverse=True)[1]
    # A graph whose nodes are the samples, then the patients, then the groups of near-identical images.
    count = len(ids)
    samples = np.tile(np.arange(count), 2)
    neighbors = np.concatenate([count + patients, 2 * count + duplicates])
    edges = coo_array((np.ones(len(samples), np.int8), (samples, neighbors)), shape=(3 * count, 3 * count))
    components: Int64 = connected_components(edges, directed=False)[1][:count].astype(np.int64)
    return components


def _record(
    labeled_set: LabeledSet, cohort: Cohort, key: TaskKey, balance: Balance, seen: PretrainingSamples | None
) -> Dataset:
    samples = labeled_set.samples
    tested = cohort.rows[cohort.in_test.any(axis=0)]
    return Dataset(
        label=key.dataset,
        preset=key.preset,
        name=labeled_set.manifest.dataset,
        folder=shown(labeled_set.location),
        identity=labeled_set.manifest.identity,
        simulated=is_simulated(labeled_set.manifest),
        positive=cohort.task.positive,
        negative=cohort.task.negative_name,
        balance=balance,
        split=cohort.split,
        rounds=len(cohort.folds),
        development=_part_size(cohort, ~cohort.in_test),
        test=_part_size(cohort, cohort.in_test),
        excluded=cohort.excluded,
        pretrained_images=int(np.isin(samples.ids[tested], seen.samples).sum()) if seen else None,
        pretrained_patients=len(np.intersect1d(samples.patient_ids[tested], seen.patients)) if seen else None,
    )


def _part_size(cohort: Cohort, inside: Bool) -> PartSize:
    """Count the images that a part (rounds, n) holds in any round."""
    ever = inside.any(axis=0)
    positive, images = int(cohort.classes[ever].sum()), int(ever.sum())
    return PartSize(images, len(np.unique(cohort.patients[ever])), positive, images - positive)


def _require_unseen(record: Dataset, allow_overlap: bool) -> None:
    if record.overlaps and not allow_overlap:
        raise UserError(
            f"dataset {record.label!r}: pretraining saw {record.pretrained_images} test images and "
            f"{record.pretrained_patients} test patients, which flatters the checkpoints; probe other images, pretrain "
            "on --data.splits=[train], or pass --allow_overlap=true to have the rows marked"
        )
