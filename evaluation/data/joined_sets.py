"""Two labeled sets as one: the set that classifiers are fitted to, followed by the set that they are tested on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final

import numpy as np

from evaluation.data.feature_matrix import FeatureMatrix, concatenated
from evaluation.data.labeled_sets import LabeledSet, is_simulated
from evaluation.data.samples import Samples
from infra.arrays import Bool, Int64
from infra.log import say
from sharding.format.manifest import Manifest
from sharding.reading.location import Location
from sharding.reading.shard_set import ShardSet

# Datasets whose patients are named by whoever packed them, so that equal names in two sets mean nothing.
_OWN_NAMES: Final = ("folder", "webdataset")


@dataclass(frozen=True)
class JoinedSets:
    """Two labeled sets as one, so that all that probes a labeled set probes one set and tests on the other.

    Attributes:
        fitted: the labeled set whose images classifiers are fitted to; its samples come first
        tested: the labeled set whose images are tested
    """

    fitted: LabeledSet
    tested: LabeledSet

    @property
    def label(self) -> str:
        """Name in the tables."""
        return f"{self.tested.label}, fitted on {self.fitted.label}"

    @property
    def identity(self) -> str:
        """Hash of the packed images of both sets."""
        return sha256(f"{self.fitted.identity} {self.tested.identity}".encode()).hexdigest()

    @property
    def locations(self) -> list[Location]:
        """Folders or URLs of the shards, in the order of the samples."""
        return [*self.fitted.locations, *self.tested.locations]

    @property
    def manifest(self) -> Manifest:
        """The manifest of the fitted set, which says what images the classifiers expect."""
        return self.fitted.manifest

    @property
    def manifests(self) -> list[Manifest]:
        """Their manifests."""
        return [self.fitted.manifest, self.tested.manifest]

    @cached_property
    def shards(self) -> ShardSet:
        """The shards of both sets."""
        return ShardSet(self.locations, fetch=self.fitted.shards.fetch)

    @cached_property
    def samples(self) -> Samples:
        """Metadata of the samples of both sets."""
        return self.fitted.samples.followed_by(self.tested.samples)

    @property
    def is_tested(self) -> Bool:
        """(N,) whether a sample is of the set that is tested."""
        return np.arange(len(self.samples.ids)) >= len(self.fitted.samples.ids)

    @cached_property
    def patients(self) -> Int64:
        """(N,) one code for each patient; patients of both sets have one code if their names mean the same."""
        if self._name_patients_alike():
            return np.unique(np.asarray(self.samples.patients, np.str_), return_inverse=True)[1]
        return np.unique(self.samples.patient_ids, return_inverse=True)[1]

    def warn_of_equal_names(self) -> None:
        """Say how many patients have equal names in sets whose names of patients mean nothing elsewhere."""
        named = [manifest.options.get("folder.patient") is not None for manifest in self.manifests]
        if self._name_patients_alike() or not all(named):
            return
        equal = len(set(self.fitted.samples.patients) & set(self.tested.samples.patients))
        if equal:
            say(
                f"warning: {equal} patients of {self.tested.label} have names of patients of {self.fitted.label}; sets "
                "of other names have other patients, so they count as different people; if they are the same, pack "
                "both sets as one, with a column that says which images are the test split"
            )

    def _name_patients_alike(self) -> bool:
        """Return whether an equal name is the same patient: parts of one dataset, or pseudonyms by one key."""
        first, second = self.manifests
        if first.dataset != second.dataset or is_simulated(first) != is_simulated(second):
            return False
        if first.dataset == "dicom":
            keys = [manifest.options.get("dicom.pseudonym_key") for manifest in self.manifests]
            return keys[0] is not None and keys[0] == keys[1]
        return first.dataset not in _OWN_NAMES


ProbedSet = LabeledSet | JoinedSets


def with_joined(matrices: Mapping[str, FeatureMatrix], probed_sets: Iterable[ProbedSet]) -> dict[str, FeatureMatrix]:
    """Return the features of labeled sets, by label, with those of the joined ones among the probed sets."""
    joined = {item.label: item for item in probed_sets if isinstance(item, JoinedSets)}
    return {**matrices} | {
        label: concatenated({item.label: matrices[item.label] for item in (sets.fitted, sets.tested)})
        for label, sets in joined.items()
    }
