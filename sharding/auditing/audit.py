"""`sternum audit`: finds patients and pictures that packed folders or official splits share."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np

from infra.arrays import Int64, Records
from infra.log import progress
from infra.parallel.workers import Workers
from sharding.auditing.duplicates import Pairs, connected, identical_pairs, image_reader, near_pairs
from sharding.auditing.findings import (
    SETS,
    SPLITS,
    SPREADS,
    WITHIN,
    Audit,
    AuditedFolder,
    AuditedImage,
    ImageGroup,
    LabelPair,
    Pair,
    PatientLocation,
    SharedPatient,
    TwoClassPatient,
)
from sharding.auditing.fingerprints import pictures_of
from sharding.auditing.set_names import require_one_set_per_name
from sharding.format.manifest import Manifest
from sharding.images.perceptual import MAX_HASH_DISTANCE, MIN_CORRELATION
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata

LabelSet = tuple[str, ...]

_HEALTHY: Final = "No Finding"
_SPLIT_RANKS: Final = {"train": 0, "val": 1, "test": 2}


def audit(folders: Sequence[Path], workers: int = 0, address: str | None = None) -> Audit:
    """Compare all patients and images of these folders with each other.

    Patients are the same if their name and that of their set are. Pictures are compared across sets too; mirrored or
    rotated copies are not recognized. The result does not depend on the number of workers.

    Args:
        folders: packed folders
        workers: processes that read; 0 means one for each CPU
        address: a Ray cluster that reads instead; its nodes must see the folders under the same paths

    Raises:
        UserError: if a folder is not a packed dataset or occurs twice, or if two sets of one name are different sets
        RunFailed: if an image that must be read is damaged, or a node of the cluster cannot read one
    """
    shards = ShardSet(folders)
    manifests = {folder: read_manifest(folder) for folder in dict.fromkeys(shards.folders)}
    require_one_set_per_name(shards)
    used = Workers(workers, address)
    rows, index = pictures_of(shards, used), shards.whole_index()
    identical, near = identical_pairs(rows), near_pairs(rows, image_reader(shards), used)
    groups = _Groups(shards, rows)
    return Audit(
        folders=[_folder(path, manifest) for path, manifest in manifests.items()],
        max_hash_distance=MAX_HASH_DISTANCE,
        min_correlation=MIN_CORRELATION,
        shared_patients=_shared_patients(shards, manifests, index),
        two_class_patients=_two_class_patients(shards, index),
        identical=groups.of(identical),
        near_identical=groups.of(_near_and_their_copies(near, identical)),
    )


def _folder(path: Path | str, manifest: Manifest) -> AuditedFolder:
    splits: Counter[str] = Counter()
    for shard in manifest.shards:
        splits[shard.split or "no split"] += shard.samples
    return AuditedFolder(str(path), manifest.dataset, manifest.name, manifest.samples, manifest.patients, dict(splits))


def _near_and_their_copies(near: Pairs, identical: Pairs) -> Pairs:
    """Return the near pairs, and the identical pairs of images in them."""
    copied = np.isin(identical.first, np.concatenate([near.first, near.second]))
    return near.joined(identical.chosen(copied))


def _spread(locations: Iterable[tuple[str, str | None]]) -> str:
    """Return the spread over these locations, each a folder and a split."""
    distinct = set(locations)
    if len({folder for folder, _ in distinct}) > 1:
        return SETS
    return SPLITS if len(distinct) > 1 else WITHIN


class _Groups:
    """Turns pairs into groups of images, and reads the images' names."""

    def __init__(self, shards: ShardSet, rows: Records) -> None:
        self._shards, self._rows = shards, rows

    def of(self, pairs: Pairs) -> list[ImageGroup]:
        """Return the groups that these pairs connect."""
        component = connected(len(self._rows), pairs)[pairs.first]
        order = np.lexsort((pairs.second, pairs.first, component))
        borders = np.flatnonzero(np.diff(component[order])) + 1
        groups = [self._group(pairs.chosen(members)) for members in np.split(order, borders) if len(members)]
        return sorted(groups, key=lambda group: (-SPREADS.index(group.spread), group.images[0].number))

    def _group(self, pairs: Pairs) -> ImageGroup:
        numbers = np.unique([pairs.first, pairs.second])
        images = _with_one_that_stays([self._image(number) for number in numbers.tolist()])
        columns = (
            np.searchsorted(numbers, pairs.first),
            np.searchsorted(numbers, pairs.second),
            self._rows["content"][pairs.first] == self._rows["content"][pairs.second],
            pairs.distance,
            pairs.correlation.round(4),
            pairs.center,
        )
        return ImageGroup(
            spread=_spread((image.folder, image.split) for image in images),
            images=images,
            pairs=[Pair(*values) for values in zip(*(column.tolist() for column in columns), strict=True)],
        )

    def _image(self, number: int) -> AuditedImage:
        shard, row = (int(part) for part in self._shards.locate(number))
        metadata = self._shards.metadata(shard, row)
        return AuditedImage(
            number=number,
            folder=str(self._shards.folders[shard]),
            name=self._shards.names[shard],
            split=self._shards.shards[shard].split,
            shard=self._shards.shards[shard].name,
            key=self._shards.key(shard, row),
            path=metadata["path"],
            patient=str(metadata["patient"]),
            stays=False,
        )


def _with_one_that_stays(images: list[AuditedImage]) -> list[AuditedImage]:
    folders = list(dict.fromkeys(image.folder for image in images))  # by number, so in the order of the command

    def rank(image: AuditedImage) -> tuple[int, int, str]:
        return folders.index(image.folder), _SPLIT_RANKS.get(image.split or "", 3), image.key

    staying = min(images, key=rank)
    return [replace(image, stays=(image.name, image.key) == (staying.name, staying.key)) for image in images]


def _patient(shards: ShardSet, number: int) -> str:
    """Return the name of the patient in image `number`."""
    shard, row = (int(part) for part in shards.locate(number))
    return str(shards.metadata(shard, row)["patient"])


def _shared_patients(shards: ShardSet, manifests: dict[Path | str, Manifest], index: Records) -> list[SharedPatient]:
    shard_locations = [(folder, shard.split) for folder, shard in zip(shards.folders, shards.shards, strict=True)]
    locations = list(dict.fromkeys(shard_locations))
    numbers = np.repeat([locations.index(location) for location in shard_locations], shards.shard_samples)
    patients = np.stack([index["patient"], numbers.astype(np.uint64)], axis=1)  # (n, 2): patient, location
    patients, first, images = np.unique(patients, axis=0, return_index=True, return_counts=True)
    shared = []
    for run in _runs(patients[:, 0]):
        if len(run) == 1:
            continue
        patient_locations = [locations[int(number)] for number in patients[run, 1]]
        shared.append(
            SharedPatient(
                spread=_spread((str(folder), split) for folder, split in patient_locations),
                dataset=manifests[patient_locations[0][0]].name,
                patient=_patient(shards, int(first[run[0]])),
                places=[
                    PatientLocation(str(folder), split, count)
                    for (folder, split), count in zip(patient_locations, images[run].tolist(), strict=True)
                ],
            )
        )
    return sorted(shared, key=lambda patient: (-SPREADS.index(patient.spread), patient.dataset, patient.patient))


def _two_class_patients(shards: ShardSet, index: Records) -> list[TwoClassPatient]:
    names = sorted(set(shards.names))
    image_names = np.repeat([names.index(name) for name in shards.names], shards.shard_samples)
    image_labels, label_sets = _label_sets(shards)
    excluding = [
        excluding_labels({label_sets[labels] for labels in np.unique(image_labels[image_names == name]).tolist()})
        for name in range(len(names))
    ]
    patients = np.stack([index["patient"], image_labels.astype(np.uint64)], axis=1)  # (n, 2): patient, label set
    patients, first = np.unique(patients, axis=0, return_index=True)
    two_class = []
    for run in _runs(patients[:, 0]):
        if len(run) == 1:
            continue
        labels = sorted({name for number in patients[run, 1].tolist() for name in label_sets[number]})
        image = int(first[run[0]])
        name = image_names[image]
        contradicting = [pair for pair in combinations(labels, 2) if pair in excluding[name]]
        if contradicting:
            two_class.append(TwoClassPatient(names[name], _patient(shards, image), contradicting))
    return sorted(two_class, key=lambda patient: (patient.dataset, patient.patient))


def _label_sets(shards: ShardSet) -> tuple[Int64, list[LabelSet]]:
    """Return the number (n,) of the set of labels that are 1 in each image, and these sets."""
    numbers: dict[LabelSet, int] = {}
    labels = np.empty(shards.samples, np.int64)
    with closing(packed_metadata(shards)) as metadata:
        records = progress(metadata, "reading labels", total=shards.samples, unit="sample")
        for image, record in enumerate(records):
            present = tuple(sorted(name for name, value in record["labels"].items() if value == 1))
            labels[image] = numbers.setdefault(present, len(numbers))
    return labels, list(numbers)


def excluding_labels(label_sets: Iterable[LabelSet]) -> set[LabelPair]:
    """Return the pairs of labels, each in alphabetical order, that exclude each other in a dataset.

    No image has both, and one of them is never combined with any label (such as Cell's NORMAL), or is `No Finding`
    (which CheXpert combines with Support Devices). Findings that merely do not occur together are not such pairs.
    """
    sets = list(label_sets)
    names = sorted({name for present in sets for name in present})
    together = {pair for present in sets for pair in combinations(sorted(present), 2)}
    alone = {name for name in names if not any(name in pair for pair in together)} | {_HEALTHY}
    return {pair for pair in combinations(names, 2) if pair not in together and alone.intersection(pair)}


def _runs(ordered: Int64) -> Iterator[Int64]:
    """Yield the positions of each run of equal values."""
    yield from np.split(np.arange(len(ordered)), np.flatnonzero(np.diff(ordered)) + 1)
