"""Labelled datasets as they are probed: their samples, the cohorts of their tasks, and the facts beside the scores."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from evaluation.data.features import load_stored, store
from evaluation.data.protocol import Cohort, Ints, build_cohort
from evaluation.data.samples import Samples
from evaluation.results.presets import PRESETS, Balance, Preset, PresetName, Uncertain, task_of
from evaluation.results.results import Dataset, PartSize
from infra.errors import RunFailed, UserError, require
from infra.log import progress
from infra.options import key, setting
from sharding.auditing.duplicates import near_duplicate_groups
from sharding.format.manifest import Manifest
from sharding.reading.data_config import DataConfig
from sharding.reading.fetch import FetchConfig
from sharding.reading.location import Location, without_credentials
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata


@dataclass(frozen=True)
class ProbeData:
    """The labeled shards that a probe reads.

    Args:
        shards: folders or URLs of labeled shards, one dataset each
        fetch: how remote shards are downloaded and cached
    """

    shards: list[str]
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        require(bool(self.shards), f"{setting(self, 'shards')} must name a folder; try [shards/cell]")


@dataclass(frozen=True)
class LabeledSet:
    """A folder of labelled shards. label: the dataset's name, with the word `simulated` where its images are."""

    place: Location
    shards: ShardSet
    manifest: Manifest
    samples: Samples
    label: str


@dataclass(frozen=True)
class ProbeTask:
    """The task of a packed dataset as one preset divides it."""

    packed: LabeledSet
    cohort: Cohort
    preset: Preset
    facts: Dataset


@dataclass(frozen=True)
class PretrainingSamples:
    """The samples and patients (hashes of the index) that a run was pretrained on."""

    samples: npt.NDArray[np.uint64]
    patients: npt.NDArray[np.uint64]


def display_name(manifest: Manifest) -> str:
    """Return how a dataset is called in tables: simulated ones never by the bare name of the real one."""
    return f"{manifest.dataset} (simulated)" if is_simulated(manifest) else manifest.dataset


def is_simulated(manifest: Manifest) -> bool:
    """Return whether the packed images were drawn by a program."""
    return manifest.options.get("simulated") is True


def open_labeled_sets(data: ProbeData) -> list[LabeledSet]:
    """Open folders of labeled shards.

    Raises:
        UserError: for the first folder that cannot be probed.
    """
    manifests = [read_manifest(location, data.fetch) for location in data.shards]
    labels = [display_name(manifest) for manifest in manifests]
    for manifest, label in zip(manifests, labels, strict=True):
        task_of(manifest.dataset)
        if labels.count(label) > 1:
            raise UserError(f"two folders of {key(data, 'shards')} hold the dataset {label!r}; name one of them")
    opened = []
    for location, manifest, label in zip(data.shards, manifests, labels, strict=True):
        shards = ShardSet([location], fetch=data.fetch)
        opened.append(LabeledSet(location, shards, manifest, _read_samples(shards, manifest), label))
    return opened


def pretraining_samples(data: DataConfig, data_identity: str) -> PretrainingSamples | None:
    """Return what a run was pretrained on; None where its very shards are not to be had."""
    try:
        shards = ShardSet(data.shards, data.splits, data.fraction_percent, data.fetch)
        if shards.identity != data_identity:
            return None
        rows = np.concatenate([shards.index(number) for number in range(len(shards.shards))])
    except (UserError, RunFailed):
        return None
    return PretrainingSamples(rows["sample"], rows["patient"])


def open_probe_tasks(
    opened: Sequence[LabeledSet],
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
    """Divide every dataset by every preset; `balance` replaces what the task is balanced by.

    `folder` keeps which images are near-identical. Raises UserError for a dataset that cannot be divided, and for one
    whose test part was in the pretraining, unless `allow_overlap`.
    """
    targets = []
    for packed in opened:
        task = task_of(packed.manifest.dataset)
        for number, kind in enumerate([balance] if balance else task.balances):
            for name in presets:
                preset = PRESETS[name]
                cohort = build_cohort(
                    packed.manifest.dataset,
                    packed.samples,
                    preset,
                    seed=seed,
                    uncertain=uncertain,
                    balance=kind,
                    groups=_groups(packed, folder) if preset.groups_duplicates else None,
                    folds=folds,
                    repeats=repeats,
                )
                label = packed.label + (f", balanced by {kind}" if number else "")
                facts = _facts(packed, cohort, label, name, kind, seen)
                _require_unseen(facts, allow_overlap)
                targets.append(ProbeTask(packed, cohort, preset, facts))
    return targets


def _groups(packed: LabeledSet, folder: Path) -> Ints:
    """(N,) one code for all samples that share a patient or a near-identical image, directly or over others."""
    ids = packed.samples.ids
    path = folder / f"{packed.manifest.identity[:32]}-near-duplicates.safetensors"
    near = load_stored(path, ids)
    if near is None:
        found, near = near_duplicate_groups([packed.place], fetch=packed.shards.fetch)
        assert np.array_equal(found, ids), "both are in packed order"
        store(path, near, ids)
    patients = np.unique(packed.samples.patient_ids, return_inverse=True)[1]
    nodes = np.arange(len(ids))
    first, second = (np.concatenate(pair) for pair in ((nodes, nodes), (len(ids) + patients, 2 * len(ids) + near)))
    edges = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(3 * len(ids), 3 * len(ids)))
    groups: Ints = connected_components(edges, directed=False)[1][: len(ids)].astype(np.int64)
    return groups


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
        views=[values["view"] for values in known],
        sexes=[values["sex"] for values in known],
        ages=[values["age"] for values in known],
    )


def _facts(
    packed: LabeledSet,
    cohort: Cohort,
    label: str,
    preset: PresetName,
    balance: Balance,
    seen: PretrainingSamples | None,
) -> Dataset:
    samples = packed.samples
    tested = cohort.rows[cohort.in_test.any(axis=0)]
    return Dataset(
        label=label,
        preset=preset,
        name=packed.manifest.dataset,
        folder=without_credentials(packed.place),
        identity=packed.manifest.identity,
        simulated=is_simulated(packed.manifest),
        positive=cohort.task.positive,
        negative=cohort.task.negative_name,
        balance=balance,
        split=cohort.split,
        rounds=len(cohort.folds),
        development=_part(cohort, ~cohort.in_test),
        test=_part(cohort, cohort.in_test),
        excluded=cohort.excluded,
        pretrained_images=int(np.isin(samples.ids[tested], seen.samples).sum()) if seen else None,
        pretrained_patients=len(np.intersect1d(samples.patient_ids[tested], seen.patients)) if seen else None,
    )


def _part(cohort: Cohort, inside: npt.NDArray[np.bool_]) -> PartSize:
    """Count a part, given for each round (rounds, n), over all rounds."""
    ever = inside.any(axis=0)
    positive, images = int(cohort.classes[ever].sum()), int(ever.sum())
    return PartSize(images, len(np.unique(cohort.patients[ever])), positive, images - positive)


def _require_unseen(facts: Dataset, allow_overlap: bool) -> None:
    if facts.overlaps and not allow_overlap:
        raise UserError(
            f"dataset {facts.label!r}: {facts.pretrained_images} test images and {facts.pretrained_patients} test "
            "patients were in the pretraining, which flatters the checkpoints; probe other images, pretrain on "
            "--data.splits=[train], or pass --allow_overlap=true to have the rows marked"
        )
