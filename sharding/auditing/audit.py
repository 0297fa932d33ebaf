"""`sternum audit`: the patients and pictures that packed folders share where sets and splits must share none."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from infra.arrays import Int64
from sharding.auditing.duplicates import Pairs, connected, identical_pairs, near_pairs
from sharding.auditing.fingerprints import Fingerprints, LabelSet, Rows, fingerprints
from sharding.auditing.perceptual import MAX_HASH_DISTANCE, MIN_CORRELATION
from sharding.format.manifest import Manifest
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet

# How far a patient or a picture reaches. Only the first is no leak.
WITHIN: Final = "within one split"
SPLITS: Final = "across splits"
SETS: Final = "across sets"
SPREADS: Final = (WITHIN, SPLITS, SETS)

LabelPair = tuple[str, str]

_HEALTHY: Final = "No Finding"


@dataclass(frozen=True)
class AuditedFolder:
    """A packed folder. splits: images of each official split, `no split` where there is none."""

    path: str
    dataset: str
    images: int
    patients: int
    splits: dict[str, int]


@dataclass(frozen=True)
class PatientLocation:
    """Where a patient stands, and with how many images."""

    folder: str
    split: str | None
    images: int


@dataclass(frozen=True)
class SharedPatient:
    """A patient who stands in several folders, or in several official splits of one."""

    spread: str
    dataset: str
    patient: str
    places: list[PatientLocation]


@dataclass(frozen=True)
class TwoClassPatient:
    """A patient with images of labels that exclude each other. labels: every such pair."""

    dataset: str
    patient: str
    labels: list[LabelPair]


@dataclass(frozen=True)
class AuditedImage:
    """An image in a group. number: its place in the packed order of all audited folders."""

    number: int
    folder: str
    split: str | None
    shard: str
    key: str
    patient: str


@dataclass(frozen=True)
class Pair:
    """Two images of a group, by their places in its list. distance: bits in which their hashes differ."""

    first: int
    second: int
    equal_pixels: bool
    equal_bytes: bool
    distance: int
    correlation: float


@dataclass(frozen=True)
class ImageGroup:
    """Images that show one picture, and the pairs that connect them."""

    spread: str
    images: list[AuditedImage]
    pairs: list[Pair]


@dataclass(frozen=True)
class Audit:
    """What was found, the widest spread first, then in packed order.

    identical: groups of images with equal pixels, each image paired with the first.
    near_identical: groups that near pairs hold together. The identical copies of their images are among them, and only
    the first of these is paired with near ones.
    """

    folders: list[AuditedFolder]
    max_hash_distance: int
    min_correlation: float
    shared_patients: list[SharedPatient]
    two_class_patients: list[TwoClassPatient]
    identical: list[ImageGroup]
    near_identical: list[ImageGroup]


def audit(folders: Sequence[Path], workers: int = 0) -> Audit:
    """Compare all patients and images of these folders with each other.

    Patients are the same where dataset and name are. Pictures are compared across datasets too; a mirrored or rotated
    copy is not recognised. The result does not depend on the number of workers. Raises UserError when a folder is no
    packed dataset or is named twice, and RunFailed when an image's bytes are not those that were packed.
    """
    shards = ShardSet(folders)
    manifests = {folder: read_manifest(folder) for folder in dict.fromkeys(shards.folders)}
    found = fingerprints(shards, workers)
    identical, near = identical_pairs(found.rows), near_pairs(shards, found.rows, workers)
    groups = _Groups(shards, found.rows)
    return Audit(
        folders=[_folder(path, manifest) for path, manifest in manifests.items()],
        max_hash_distance=MAX_HASH_DISTANCE,
        min_correlation=MIN_CORRELATION,
        shared_patients=_shared_patients(shards, manifests, found.rows),
        two_class_patients=_two_class_patients(shards, manifests, found),
        identical=groups.of(identical),
        near_identical=groups.of(_near_and_their_copies(near, identical)),
    )


def _folder(path: Path | str, manifest: Manifest) -> AuditedFolder:
    splits: Counter[str] = Counter()
    for shard in manifest.shards:
        splits[shard.split or "no split"] += shard.samples
    return AuditedFolder(str(path), manifest.dataset, manifest.samples, manifest.patients, dict(splits))


def _near_and_their_copies(near: Pairs, identical: Pairs) -> Pairs:
    """Return the near pairs, and those identical ones whose picture is in one of them."""
    copied = np.isin(identical.first, np.concatenate([near.first, near.second]))
    return near.joined(identical.chosen(copied))


def _spread(places: Iterable[tuple[str, str | None]]) -> str:
    """Return how far things at these places, of folder and split, reach."""
    apart = set(places)
    if len({folder for folder, _ in apart}) > 1:
        return SETS
    return SPLITS if len(apart) > 1 else WITHIN


class _Groups:
    """Makes groups of images out of pairs, and reads what they are called."""

    def __init__(self, shards: ShardSet, rows: Rows) -> None:
        self._shards, self._rows = shards, rows

    def of(self, pairs: Pairs) -> list[ImageGroup]:
        """Return the groups that these pairs connect."""
        component = connected(len(self._rows), pairs)[pairs.first]
        order = np.lexsort((pairs.second, pairs.first, component))
        borders = np.flatnonzero(np.diff(component[order])) + 1
        groups = [self._group(pairs.chosen(some)) for some in np.split(order, borders) if len(some)]
        return sorted(groups, key=lambda group: (-SPREADS.index(group.spread), group.images[0].number))

    def _group(self, pairs: Pairs) -> ImageGroup:
        numbers = np.unique([pairs.first, pairs.second])
        images = [self._image(number) for number in numbers.tolist()]
        equal = {
            name: self._rows[name][pairs.first] == self._rows[name][pairs.second] for name in ("pixels", "content")
        }
        columns = (
            np.searchsorted(numbers, pairs.first),
            np.searchsorted(numbers, pairs.second),
            equal["pixels"],
            equal["content"],
            pairs.distance,
            pairs.correlation.round(4),
        )
        return ImageGroup(
            spread=_spread((image.folder, image.split) for image in images),
            images=images,
            pairs=[Pair(*values) for values in zip(*(column.tolist() for column in columns), strict=True)],
        )

    def _image(self, number: int) -> AuditedImage:
        shard, row = (int(part) for part in self._shards.locate(number))
        return AuditedImage(
            number=number,
            folder=str(self._shards.folders[shard]),
            split=self._shards.shards[shard].split,
            shard=self._shards.shards[shard].name,
            key=self._shards.key(shard, row),
            patient=_patient(self._shards, number),
        )


def _patient(shards: ShardSet, number: int) -> str:
    """Return the name of the patient whom image `number` shows."""
    shard, row = (int(part) for part in shards.locate(number))
    return str(shards.metadata(shard, row)["patient"])


def _shared_patients(shards: ShardSet, manifests: dict[Path | str, Manifest], rows: Rows) -> list[SharedPatient]:
    of_shard = [(folder, shard.split) for folder, shard in zip(shards.folders, shards.shards, strict=True)]
    places = list(dict.fromkeys(of_shard))
    place = np.array([places.index(one) for one in of_shard])[np.repeat(np.arange(len(of_shard)), shards.shard_samples)]
    stands = np.stack([rows["patient"], place.astype(np.uint64)], axis=1)
    stands, first, images = np.unique(stands, axis=0, return_index=True, return_counts=True)
    shared = []
    for some in _runs(stands[:, 0]):
        if len(some) == 1:
            continue
        there = [places[int(number)] for number in stands[some, 1]]
        shared.append(
            SharedPatient(
                spread=_spread((str(folder), split) for folder, split in there),
                dataset=manifests[there[0][0]].dataset,
                patient=_patient(shards, int(first[some[0]])),
                places=[
                    PatientLocation(str(folder), split, count)
                    for (folder, split), count in zip(there, images[some].tolist(), strict=True)
                ],
            )
        )
    return sorted(shared, key=lambda one: (-SPREADS.index(one.spread), one.dataset, one.patient))


def _two_class_patients(
    shards: ShardSet, manifests: dict[Path | str, Manifest], found: Fingerprints
) -> list[TwoClassPatient]:
    datasets = sorted({manifest.dataset for manifest in manifests.values()})
    of_shard = np.array([datasets.index(manifests[folder].dataset) for folder in shards.folders])
    dataset = np.repeat(of_shard, shards.shard_samples)
    rows = found.rows
    excluding = [
        excluding_labels({found.label_sets[number] for number in np.unique(rows["labels"][dataset == one]).tolist()})
        for one in range(len(datasets))
    ]
    carries = np.stack([rows["patient"], rows["labels"].astype(np.uint64)], axis=1)
    carries, first = np.unique(carries, axis=0, return_index=True)
    patients = []
    for some in _runs(carries[:, 0]):
        if len(some) == 1:
            continue
        labels = sorted({name for number in carries[some, 1].tolist() for name in found.label_sets[number]})
        number = int(first[some[0]])
        contradicting = [pair for pair in combinations(labels, 2) if pair in excluding[dataset[number]]]
        if contradicting:
            patients.append(TwoClassPatient(datasets[dataset[number]], _patient(shards, number), contradicting))
    return sorted(patients, key=lambda one: (one.dataset, one.patient))


def excluding_labels(label_sets: Iterable[LabelSet]) -> set[LabelPair]:
    """Return the pairs of labels, in alphabetical order, that exclude each other by how a dataset uses them.

    No image carries both, and one of them is never with any other label (such as Cell's NORMAL), or is `No Finding`
    (which stands beside CheXpert's Support Devices). Findings that merely happen not to meet are not among them.
    """
    sets = list(label_sets)
    names = sorted({name for present in sets for name in present})
    together = {pair for present in sets for pair in combinations(sorted(present), 2)}
    alone = {name for name in names if not any(name in pair for pair in together)} | {_HEALTHY}
    return {pair for pair in combinations(names, 2) if pair not in together and alone.intersection(pair)}


def _runs(ordered: Int64) -> Iterator[Int64]:
    """Yield the positions of each run of equal values."""
    yield from np.split(np.arange(len(ordered)), np.flatnonzero(np.diff(ordered)) + 1)
