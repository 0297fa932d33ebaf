"""`sternum submit slurm|kubernetes|ray -- sternum COMMAND ...`: runs a command on a cluster."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from infra.clusters import kubernetes, ray_jobs, slurm
from infra.clusters.job import THIS_CLUSTER, Job, job_of
from infra.clusters.kubernetes import KubernetesConfig
from infra.clusters.ray_jobs import RayConfig
from infra.clusters.slurm import SlurmConfig
from infra.configuration.config import parse
from infra.configuration.options import key, registered, require_at_least, setting
from infra.errors import require
from infra.log import say
from launch.cli import split_at_dashes
from launch.inner_command import Paths, paths_of

_NAME: Final = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"
_VARIABLE: Final = r"[A-Za-z_]\w*=.*"
_SECRET: Final = r"(?i)\w*(SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|PRIVATE_KEY)(?!\w*_(PATH|FILE)=)\w*="


@dataclass(frozen=True)
class SubmitConfig:
    """The cluster, and what the command needs of it.

    Args:
        cluster: slurm, kubernetes or ray
        name: name of the job, made from the command and its subject by default
        nodes: number of machines
        gpus: GPUs of each machine; a pretraining has one process for each, or one process without GPUs
        cpus: CPU cores of each machine
        memory_gb: memory of each machine in GB
        env: environment variables, such as [NCCL_SOCKET_IFNAME=ib0,GLOO_SOCKET_IFNAME=ib0]
        dry_run: print the job and submit nothing
        slurm: SLURM
        kubernetes: Kubernetes
        ray: Ray
    """

    cluster: Literal["slurm", "kubernetes", "ray"]
    name: str | None = None
    nodes: int = 1
    gpus: int = 0
    cpus: int = 8
    memory_gb: int = 32
    env: list[str] = field(default_factory=list)
    dry_run: bool = False
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    ray: RayConfig = field(default_factory=RayConfig)

    def __post_init__(self) -> None:
        require(
            self.name is None or re.fullmatch(_NAME, self.name) is not None,
            f"{setting(self, 'name')} must be at most 40 lower-case letters, digits and hyphens, a letter first",
        )
        for name, least in (("nodes", 1), ("gpus", 0), ("cpus", 1), ("memory_gb", 1)):
            require_at_least(self, name, least, f"try {least}")
        for word in self.env:
            variable = word.partition("=")[0]
            require(
                re.fullmatch(_VARIABLE, word) is not None, f"{key(self, 'env')}: {variable} must look like NAME=VALUE"
            )
            require(
                re.match(_SECRET, word) is None,
                f"{key(self, 'env')}: {variable} looks like a secret, which would be readable in the job; leave it out",
            )


def main(arguments: Sequence[str]) -> int:
    """Submit the command after `--`, or print the job."""
    words, command = split_at_dashes(arguments)
    config = parse(
        SubmitConfig,
        words,
        command="submit",
        description=(
            "Run the Sternum command after `--` on a cluster. Pretraining and embed use all GPUs of all machines; "
            "shard, audit and probe use all machines by Ray; the other commands use one machine. Sternum must be "
            "installed on all machines, and the folders of the command must exist there. docs/clusters.md has the way "
            "from one machine to many."
        ),
        examples=(
            "sternum submit slurm --nodes=4 --gpus=8 --slurm.partition=gpu -- \\",
            "    sternum pretrain runs/paper --config=gazda2021 --data.shards=[shards/chexpert]",
            "sternum submit slurm --gpus=1 --slurm.seeds=[0,1,2] --dry_run=true -- \\",
            "    sternum pretrain runs/seed-{seed} --seed={seed} --config=cpu --data.shards=[shards/cell]",
            "sternum submit kubernetes --config=cluster.yaml --nodes=4 --gpus=8 -- \\",
            "    sternum pretrain /runs/paper --config=gazda2021 --data.shards=[s3://bucket/chexpert]",
            "sternum submit ray --ray.address=http://head:8265 -- sternum probe /runs/paper --data.shards=[/cell]",
        ),
        subject="cluster",
    )
    job = job_of(
        command,
        name=config.name,
        nodes=len(config.ray.hosts) or config.nodes,
        gpus=config.gpus,
        cpus=config.cpus,
        memory_gb=config.memory_gb,
        env=config.env,
        is_on_ray=config.cluster == "ray",
    )
    return {"slurm": _by_slurm, "kubernetes": _by_kubernetes, "ray": _by_ray}[config.cluster](job, config)


def _by_slurm(job: Job, config: SubmitConfig) -> int:
    _require_command(job)
    script = slurm.render(job, config.slurm, lambda arguments: _paths(job, arguments).written)
    if config.dry_run:
        return _print(script)
    number = slurm.submit(script)
    say(f"submitted; the output goes to {job.name}-{number}.out, for an array to {job.name}-{number}_TASK.out")
    return _print(f"{number}\n")


def _by_kubernetes(job: Job, config: SubmitConfig) -> int:
    paths = _paths(job, job.arguments, is_elsewhere=True)
    manifests = kubernetes.render(job, config.kubernetes, paths.written)
    kubernetes.require_volumes(config.kubernetes, paths.written, paths.read)
    return _print(manifests if config.dry_run else f"{kubernetes.submit(manifests)}\n")


def _by_ray(job: Job, config: SubmitConfig) -> int:
    if config.ray.hosts:
        require(job.way == "cluster", f"{setting(config.ray, 'hosts')} makes a cluster; submit the command to it later")
        return _print(ray_jobs.render_cluster(job, config.ray))
    _require_command(job)
    paths = _paths(job, job.arguments, is_elsewhere=True)
    text = ray_jobs.render(job)
    ray_jobs.require_absolute([*paths.written, *paths.read])
    if config.dry_run:
        return _print(text)
    name = ray_jobs.submit(job, config.ray)
    say(f"submitted; to follow its output: ray job logs --follow --address={config.ray.address} {name}")
    return _print(f"{name}\n")


def _paths(job: Job, arguments: Sequence[str], *, is_elsewhere: bool = False) -> Paths:
    """Read the command of a job as its machines will, and return the paths that it names."""
    if job.way == "cluster":
        return Paths([], [])
    with registered(SubmitConfig):  # the command registers its own options
        words = [word for word in arguments if word != THIS_CLUSTER]  # this machine may lack Ray
        return paths_of(job.command, words, is_elsewhere=is_elsewhere)


def _require_command(job: Job) -> None:
    require(
        job.way != "cluster",
        "nothing to submit; add a command after `--`, such as: -- sternum pretrain runs/first --config=gazda2021",
    )


def _print(text: str) -> int:
    sys.stdout.write(text)
    return 0
