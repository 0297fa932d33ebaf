"""Features of several backbones and sets at once: a process for each GPU, or tasks of a Ray cluster.

On CPUs one process with all threads extracts them one after another; several that share the threads are not faster
(docs/design.md).
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from evaluation.data.extractor import Extractor, on_this_machine
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.labeled_sets import LabeledSet
from infra.arrays import Float32
from infra.errors import RunFailed, UserError
from infra.log import progress, say
from infra.parallel.process_map import ordered_map
from infra.parallel.workers import Workers
from sharding.reading.shard_set import ShardSet

Features = dict[FeatureSource, Mapping[str, FeatureMatrix]]  # source -> label of a set -> features


@dataclass(frozen=True)
class ParallelExtractor:
    """Extracts features with the same bits as one process does on the same kind of device.

    Attributes:
        extractor: extracts in this process, and knows where features are kept
        address: a Ray cluster to use; None for this machine
    """

    extractor: Extractor
    address: str | None = None

    def features(self, sources: Sequence[FeatureSource], labeled_sets: Sequence[LabeledSet]) -> Features:
        """Return the features of all images of each set.

        Raises:
            UserError: if features are not finite
            RunFailed: if an image or a checkpoint is damaged
        """
        if self.address and sources:
            try:
                return extract_with_ray(self.extractor, sources, labeled_sets, self.address)
            except NotOnCluster as reason:
                say(
                    f"warning: a machine of the cluster {self.address} cannot extract features ({reason}); this "
                    "machine extracts them"
                )
        elif self.extractor.device.type == "cuda" and torch.cuda.device_count() > 1:
            devices = [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
            extract_in_processes(self.extractor, sources, labeled_sets, devices)
        return {source: self.extractor.fitting(source).features(source, labeled_sets) for source in sources}


def extract_in_processes(
    extractor: Extractor,
    sources: Sequence[FeatureSource],
    labeled_sets: Sequence[LabeledSet],
    devices: Sequence[torch.device],
) -> None:
    """Extract and store the features of all sources on all sets, by one process on each device."""
    tasks = [(source, labeled_set) for source in sources for labeled_set in labeled_sets]
    shares = [(replace(extractor, device=device), tasks[first :: len(devices)]) for first, device in enumerate(devices)]
    shares = [share for share in shares if share[1]]
    for _ in ordered_map(_store_all, shares, workers=len(shares)):
        pass


def _store_all(share: tuple[Extractor, Sequence[tuple[FeatureSource, LabeledSet]]]) -> None:
    extractor, tasks = share
    for source, labeled_set in tasks:
        extractor.fitting(source).features(source, [labeled_set])


class _Images(NamedTuple):
    """What a machine of a cluster needs of a labeled set; patients and labels stay here."""

    label: str
    identity: str
    shards: ShardSet


class NotOnCluster(Exception):
    """A machine of the cluster cannot do what this one may be able to do; the message is the reason."""


def extract_with_ray(
    extractor: Extractor, sources: Sequence[FeatureSource], labeled_sets: Sequence[LabeledSet], address: str
) -> Features:
    """Extract features on a cluster: at a time one backbone and set for each GPU, or without GPUs for each machine.

    The machines must see the shards and the weights under the same paths; features go into the folder of this one.

    Raises:
        UserError: if the cluster cannot be joined
        RunFailed: if a machine is lost more often than Ray repeats a task
        NotOnCluster: if a machine cannot read a set or a backbone, or features are not finite
    """
    tasks = [(source, labeled_set) for source in sources for labeled_set in labeled_sets]
    features: dict[FeatureSource, dict[str, FeatureMatrix]] = {source: {} for source in sources}
    with closing(_extracted(extractor, tasks, extractor.stored(), address)) as extracted:
        results = progress(extracted, "extracting features", len(tasks), unit="set")
        for (source, labeled_set), (identity, values) in zip(tasks, results, strict=True):
            kept = extractor.keep(identity, values, labeled_set)
            if kept is None:  # the stored file is damaged
                [(_, again)] = _extracted(extractor, [(source, labeled_set)], frozenset(), address)
                kept = extractor.keep(identity, again, labeled_set)
            assert kept is not None, "a task that finds nothing stored returns values"
            features[source][labeled_set.label] = FeatureMatrix(identity, kept)
    return dict(features)


def _extracted(
    extractor: Extractor, tasks: Sequence[tuple[FeatureSource, LabeledSet]], stored: frozenset[str], address: str
) -> Generator[tuple[str, Float32 | None]]:
    """Yield for each task the identity of the features, and the features, None if they are stored.

    Raises:
        NotOnCluster: if a machine of the cluster cannot do a task
    """
    sent = [(source, _Images(each.label, each.manifest.identity, each.shards)) for source, each in tasks]
    extract = partial(_extract, extractor, stored)
    with closing(Workers(address=address).map(extract, sent, len(sent), whole_machines=True)) as results:
        for result in results:
            if isinstance(result, NotOnCluster):
                raise result
            yield result


def _extract(
    extractor: Extractor, stored: frozenset[str], task: tuple[FeatureSource, _Images]
) -> tuple[str, Float32 | None] | NotOnCluster:
    """Extract features on this machine of a cluster, unless they are stored; return why if it cannot."""
    source, images = task
    try:
        here = on_this_machine(extractor).fitting(source)
        backbone = source.backbone()
        identity = here.identity(backbone, images.identity)
        if here.file_name(identity) in stored:
            return identity, None
        return identity, here.extract(backbone, images.shards, f"{source.name} on {images.label}")
    except (UserError, RunFailed) as error:
        return NotOnCluster(str(error))
