"""Labeled datasets, opened and with the metadata of all samples."""

from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from evaluation.data.samples import Samples
from infra.arrays import Int64
from infra.configuration.options import key, setting
from infra.errors import UserError, require
from infra.log import progress
from infra.urls import Location, require_no_credentials
from sharding.datasets.label_table import LabelOptions, LabelTable, pseudonyms_for
from sharding.format.manifest import Manifest
from sharding.format.sample import SampleMetadata
from sharding.reading.fetch import FetchConfig
from sharding.reading.manifests import read_manifest
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_samples


@dataclass(frozen=True)
class ProbeLabels(LabelOptions):
    """A table with labels for a set that is packed already.

    Args:
        set: name of the set that the table is about; needed if several are probed
        pseudonym_key: key that the set was packed with, for a join by an identifier of DICOM files
    """

    set: str | None = None
    pseudonym_key: Path | None = None


@dataclass(frozen=True)
class ProbeData:
    """The labeled shards that a probe reads.

    Args:
        shards: folders or URLs of labeled shards, one dataset each
        labels: labels from a table, beside those in the shards
        fetch: how remote shards are downloaded and cached
    """

    shards: list[Location]
    labels: ProbeLabels = field(default_factory=ProbeLabels)
    fetch: FetchConfig = field(default_factory=FetchConfig)

    def __post_init__(self) -> None:
        """Raise UserError if no shards are named."""
        require(bool(self.shards), f"{setting(self, 'shards')} must name a folder; try [shards/cell]")
        for location in self.shards:
            require_no_credentials(location, key(self, "shards"))


@dataclass(frozen=True)
class LabeledSet:
    """A dataset in labeled shards.

    Attributes:
        location: folder or URL of the shards
        shards: the opened shards
        manifest: their manifest
        samples: metadata of all samples
        label: name in the tables: the set's, followed by "(simulated)" if a program drew the images
    """

    location: Location
    shards: ShardSet
    manifest: Manifest
    samples: Samples
    label: str

    @property
    def identity(self) -> str:
        """Hash of the packed images."""
        return self.manifest.identity

    @property
    def locations(self) -> list[Location]:
        """The folder or URL of the shards."""
        return [self.location]

    @property
    def manifests(self) -> list[Manifest]:
        """The manifest."""
        return [self.manifest]

    @property
    def patients(self) -> Int64:
        """(N,) one code for each patient."""
        return np.unique(self.samples.patient_ids, return_inverse=True)[1]


def display_name(manifest: Manifest) -> str:
    """Return the name of a set in tables; simulated data never bears the bare name of the real dataset."""
    return f"{manifest.name} (simulated)" if is_simulated(manifest) else manifest.name


def is_simulated(manifest: Manifest) -> bool:
    """Return whether a program drew the packed images."""
    return manifest.options.get("simulated") is True


def open_labeled_sets(data: ProbeData) -> list[LabeledSet]:
    """Open folders of labeled shards.

    Raises:
        UserError: for the first folder that cannot be probed.
    """
    manifests = [read_manifest(location, data.fetch) for location in data.shards]
    labels = [display_name(manifest) for manifest in manifests]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(
                f"two folders of {key(data, 'shards')} hold the dataset {label!r}; name one of them, or pack one again "
                "with another --name"
            )
    about = _set_of_table(data, manifests)
    labeled_sets = []
    for location, manifest, label in zip(data.shards, manifests, labels, strict=True):
        shards = ShardSet([location], fetch=data.fetch)
        table = label_table(data.labels, manifest) if manifest is about else None
        labeled_sets.append(LabeledSet(location, shards, manifest, read_samples(shards, manifest, table), label))
    return labeled_sets


def _set_of_table(data: ProbeData, manifests: list[Manifest]) -> Manifest | None:
    """Return the manifest of the set that the label table is about, None without a table."""
    if data.labels.csv is None:
        return None
    names = [manifest.name for manifest in manifests]
    require(
        data.labels.set is not None or len(names) == 1,
        f"{setting(data.labels, 'csv')} is about one set; name it: --{key(data.labels, 'set')}={names[0]}",
    )
    name = data.labels.set or names[0]
    require(
        name in names, f"{setting(data.labels, 'set')} is none of the sets in {key(data, 'shards')}: {', '.join(names)}"
    )
    return manifests[names.index(name)]


def label_table(options: ProbeLabels, manifest: Manifest) -> LabelTable:
    """Return the table to join with a packed set; raises UserError if it cannot be joined."""
    fingerprint = manifest.options.get("dicom.pseudonym_key")
    return LabelTable(
        options, pseudonyms_for(options, options.pseudonym_key, key(options, "pseudonym_key"), fingerprint)
    )


def read_samples(shards: ShardSet, manifest: Manifest, table: LabelTable | None) -> Samples:
    """Read the metadata of a set, with the labels of a table if there is one; say which of its rows match.

    Raises:
        UserError: if no row of the table matches
        RunFailed: if a shard cannot be read
    """
    index = shards.whole_index()
    keys, records = list[str](), list[SampleMetadata]()
    with closing(packed_samples(shards)) as samples:
        for shard, row in progress(samples, f"reading {manifest.name}", total=shards.samples, unit="sample"):
            record = shard.metadata(row)
            keys.append(shard.key(row))
            if table is not None:
                identity = keys[-1] if table.field == "key" else cast("str | None", record.get(table.field))
                record["labels"] = table.joined(record["labels"], identity, partial(shard.key, row))
            records.append(record)
    if table is not None:
        table.finish(manifest.name)
    return Samples(
        ids=index["sample"].copy(),
        keys=keys,
        patient_ids=index["patient"].copy(),
        patients=[record["patient"] for record in records],
        splits=[record["split"] for record in records],
        labels=[record["labels"] for record in records],
        views=[record["view"] for record in records],
        sexes=[record["sex"] for record in records],
        ages=[record["age"] for record in records],
        sizes=np.stack([index["height"], index["width"]], axis=1).astype(np.int64),
        source_sizes=np.array(
            [(record.get("source_height", 0), record.get("source_width", 0)) for record in records], np.int64
        ).reshape(-1, 2),
        file_bytes=index["image_bytes"].astype(np.int64),
    )
