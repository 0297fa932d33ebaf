"""Kubernetes: manifests that run a Sternum command, for Kubeflow, KubeRay or a plain Job, and `kubectl`."""

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from infra.clusters.job import Job, Way, doctor_words, template
from infra.clusters.tools import run_tool
from infra.configuration.options import key, require_at_least, setting
from infra.errors import RunFailed, UserError, require
from infra.log import say
from infra.urls import scheme_of
from infra.words import counted

Kind = Literal["TrainJob", "PyTorchJob", "Job", "RayJob", "RayCluster"]

_NAME: Final = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_LABEL: Final = r"[A-Za-z0-9]([-\w./]*[A-Za-z0-9])?"
_IMAGE: Final = r"[\w./:@-]+"
_UNREACHABLE: Final = re.compile(r"dial tcp [^;]+|connection to the server \S+ was refused")  # kubectl's words
_ALONE: Final = ("--rdzv-backend=c10d", "--rdzv-conf=store_type=file", "--local-addr=127.0.0.1")  # opens no port
_DEFAULT: Final[dict[Way, Kind]] = {
    "ranks": "TrainJob",
    "ray": "RayJob",
    "single": "Job",
    "cluster": "RayCluster",
}
_WAYS: Final[dict[Kind, Sequence[Way]]] = {
    "TrainJob": ["ranks"],
    "PyTorchJob": ["ranks"],
    "Job": ["ranks", "single"],
    "RayJob": ["ray"],
    "RayCluster": ["cluster"],
}


@dataclass(frozen=True)
class KubernetesConfig:
    """Kubernetes.

    Args:
        image: container image with Sternum, such as one that infra/containers builds; required
        kind: resource that runs the command: TrainJob (Kubeflow Trainer 2), PyTorchJob (Kubeflow Training Operator 1),
            RayJob (KubeRay) or Job, by default the one that suits the command; or RayCluster, without a command
        namespace: namespace of the job, the user's default if null
        volumes: PersistentVolumeClaims and where the command sees them, such as [shards:/shards,runs:/runs]
        secrets: Secrets whose entries become environment variables, such as the keys of an object store
        shared_memory_gb: size of /dev/shm, a part of the memory
        rdma: resource of the network cards for RDMA, such as rdma/hca_shared_devices_a; each machine gets one
        restarts: how often a machine's part of the job is restarted
        ray_version: version of Ray in the image
        node_selector: labels of the machines to take, such as [gpu=h100]
    """

    image: str | None = None
    kind: Kind | None = None
    namespace: str | None = None
    volumes: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    shared_memory_gb: int = 8
    rdma: str | None = None
    restarts: int = 10
    ray_version: str = "2.60.0"
    node_selector: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_at_least(self, "shared_memory_gb", 1, "try 8")
        require_at_least(self, "restarts", 0, "try 10")
        for name, form, example in (
            ("volumes", rf"{_NAME}:/[^:\s]*", "shards:/shards"),
            ("secrets", _NAME, "object-store"),
            ("node_selector", rf"{_LABEL}=({_LABEL})?", "gpu=h100"),
        ):
            for word in getattr(self, name):
                require(re.fullmatch(form, word) is not None, f"{key(self, name)}={word} must look like {example}")
        mounts = [volume.partition(":")[2].rstrip("/") for volume in self.volumes]
        require(
            len(set(mounts)) == len(mounts),
            f"{setting(self, 'volumes')} mounts two volumes at one path; give each its own",
        )
        for name, form in (("namespace", _NAME), ("rdma", _LABEL), ("image", _IMAGE), ("ray_version", r"[\d.]+")):
            word = getattr(self, name)
            require(word is None or re.fullmatch(form, word) is not None, f"{setting(self, name)} is no name")


def render(job: Job, config: KubernetesConfig, folders: Sequence[str]) -> str:
    """Return the manifests of a job.

    Args:
        job: the job
        config: what it needs of Kubernetes
        folders: the folders and object stores that the command writes

    Raises:
        UserError: if the image is missing, or the kind of resource does not suit the command
    """
    require(config.image is not None, f"{key(config, 'image')} is missing; build one: docs/clusters.md#containers")
    require(
        config.shared_memory_gb < job.memory_gb,
        f"{setting(config, 'shared_memory_gb')} must be less than memory_gb={job.memory_gb}, of which it is a part",
    )
    kind = config.kind or _DEFAULT[job.way]
    what = f"sternum {job.command} on {counted(job.nodes, 'node')}" if job.command else "a cluster without a command"
    require(
        job.way in _WAYS[kind] and (kind != "Job" or job.nodes == 1),
        f"{key(config, 'kind')}={kind} is not for {what}; leave it out to use {_DEFAULT[job.way]}",
    )
    words = _words(job, kind)
    return template(f"{kind.lower()}.yaml.j2").render(
        job=job, config=config, words=words, entrypoint=shlex.join(words), doctor=doctor_words(job, folders)
    )


def require_volumes(config: KubernetesConfig, written: Sequence[str], read: Sequence[str]) -> None:
    """Check that volumes of the job hold the paths of its command; URLs pass.

    Warns of what is read and on no volume, because the image may have it.

    Raises:
        UserError: if the command writes to a path that ends with its container
    """
    for path in written:
        require(
            _is_held(path, config),
            f"{path} is on none of {setting(config, 'volumes')}, so it would be lost with its container; mount a "
            f"volume, --{key(config, 'volumes')}=[CLAIM:/PATH], and name a path below /PATH",
        )
    for path in read:
        if not _is_held(path, config):
            say(f"warning: {path} is on none of {setting(config, 'volumes')}; the image must have it")


def _is_held(path: str, config: KubernetesConfig) -> bool:
    mounts = [volume.partition(":")[2] for volume in config.volumes]
    return scheme_of(path) is not None or any(Path(os.path.normpath(path)).is_relative_to(mount) for mount in mounts)


def _words(job: Job, kind: Kind) -> list[str]:
    """Return the command line of each machine; Kubeflow sets torchrun's number of machines and meeting point."""
    if job.way == "ranks":
        supervise = ["sternum", "supervise", job.arguments[0], "--"] if job.command == "pretrain" else []
        ranks = ["torchrun", f"--nproc-per-node={job.processes_per_node}", *(_ALONE if kind == "Job" else ())]
        return [*supervise, *ranks, "-m", f"launch.{job.command}", *job.arguments]
    return ["sternum", job.command, *job.arguments]


def submit(manifests: str) -> str:
    """Give manifests to kubectl, and return what it created.

    Raises:
        UserError: if this machine has no kubectl, or no cluster answers it
        RunFailed: if kubectl or the cluster refuses them
    """
    try:
        return run_tool(["kubectl", "create", "--filename=-"], manifests)
    except RunFailed as error:
        if unreachable := _UNREACHABLE.search(str(error)):
            raise UserError(
                f"no cluster of Kubernetes answers kubectl ({unreachable[0]}); choose one that does: kubectl config "
                "use-context NAME"
            ) from error
        raise
