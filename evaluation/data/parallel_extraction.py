"""Features of several backbones and sets at once: a process for each GPU, or tasks of a Ray cluster.

On CPUs one process with all threads extracts them one after another; several that share the threads are not faster
(docs/design.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from evaluation.data.extractor import Extractor, on_this_machine
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.labeled_sets import LabeledSet
from infra.arrays import Float32
from infra.errors import RunFailed, UserError
from infra.log import progress, say
from infra.parallel import ordered_map
from infra.ray_session import ray_session, reason_of
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
    with ray_session(address=address):
        import ray  # noqa: PLC0415 (Ray reads its environment on import: see infra.ray_session)

        remote = ray.remote(**_share_of_a_machine(ray.nodes()))(_extract)
        images = {each.label: _Images(each.label, each.manifest.identity, each.shards) for each in labeled_sets}
        stored = extractor.stored()
        given = {
            (source, label): remote.remote(extractor, source, of_set, stored)
            for source in sources
            for label, of_set in images.items()
        }

        def collected(source: FeatureSource, labeled_set: LabeledSet) -> FeatureMatrix:
            identity, values = ray.get(given[source, labeled_set.label])
            kept = extractor.keep(identity, values, labeled_set)
            if kept is None:  # the stored file is damaged
                identity, values = ray.get(remote.remote(extractor, source, images[labeled_set.label], frozenset()))
                kept = extractor.keep(identity, values, labeled_set)
            assert kept is not None, "a task that finds nothing stored returns values"
            return FeatureMatrix(identity, kept)

        try:
            return {
                source: {labeled_set.label: collected(source, labeled_set) for labeled_set in labeled_sets}
                for source in progress(sources, "extracting features", len(sources), unit="backbone")
            }
        except ray.exceptions.RayError as error:
            for reference in given.values():
                ray.cancel(reference)
            if isinstance(getattr(error, "cause", None), UserError | RunFailed):
                raise NotOnCluster(reason_of(error)) from error
            raise RunFailed(f"features could not be extracted on {address}: {reason_of(error)}") from error


def _share_of_a_machine(nodes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return what a task takes of a machine: one GPU with its part of the cores, or without GPUs all cores."""
    machines = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus:
        cores = min(int(machine["CPU"] / machine["GPU"]) for machine in with_gpus)
        return {"num_gpus": 1, "num_cpus": max(1, cores)}
    return {"num_cpus": max(1, min((int(machine["CPU"]) for machine in machines), default=1))}


def _extract(
    extractor: Extractor, source: FeatureSource, images: _Images, stored: frozenset[str]
) -> tuple[str, Float32 | None]:
    """Extract features on this machine of a cluster, unless they are stored.

    Returns:
        The identity of the features, and the features, None if they are stored.
    """
    here = on_this_machine(extractor).fitting(source)
    backbone = source.backbone()
    identity = here.identity(backbone, images.identity)
    if here.file_name(identity) in stored:
        return identity, None
    return identity, here.extract(backbone, images.shards, f"{source.name} on {images.label}")
