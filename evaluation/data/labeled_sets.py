"""Labeled datasets, opened and with the metadata of all samples."""

from contextlib import closing
from dataclasses import dataclass, field

from evaluation.data.samples import Samples
from infra.errors import UserError, require
from infra.log import progress
from infra.options import key, setting
from infra.urls import Location, require_no_credentials
from sharding.format.manifest import Manifest
from sharding.reading.fetch import FetchConfig
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

    shards: list[Location]
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
    labeled_sets = []
    for location, manifest, label in zip(data.shards, manifests, labels, strict=True):
        shards = ShardSet([location], fetch=data.fetch)
        labeled_sets.append(LabeledSet(location, shards, manifest, _read_samples(shards, manifest), label))
    return labeled_sets


def _read_samples(shards: ShardSet, manifest: Manifest) -> Samples:
    index = shards.whole_index()
    with closing(packed_metadata(shards)) as metadata:
        records = list(progress(metadata, f"reading {manifest.name}", total=shards.samples, unit="sample"))
    return Samples(
        ids=index["sample"].copy(),
        patient_ids=index["patient"].copy(),
        patients=[record["patient"] for record in records],
        splits=[record["split"] for record in records],
        labels=[record["labels"] for record in records],
        views=[record["view"] for record in records],
        sexes=[record["sex"] for record in records],
        ages=[record["age"] for record in records],
    )
