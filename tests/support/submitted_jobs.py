"""The jobs whose text is kept in tests/launch/jobs: `python -m tests.support.submitted_jobs` writes them anew."""

import shlex
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Final

from launch.cli import main

FOLDER: Final = Path(__file__).parents[1] / "launch" / "jobs"

_PAPER: Final = "sternum pretrain runs/paper --config=gazda2021 --data.shards=[shards/chexpert]"

_PAPER_IN_POD: Final = "sternum pretrain /runs/paper --config=gazda2021 --data.shards=[/shards/chexpert]"

_POD: Final = (
    "--kubernetes.image=registry.example/sternum:0.1.0 --kubernetes.namespace=xray "
    "--kubernetes.volumes=[shards:/shards,runs:/runs] --env=[NCCL_DEBUG=WARN]"
)

# File name: the words of `sternum submit`.
JOBS: Final = {
    "slurm-4-nodes.sh": "slurm --nodes=4 --gpus=8 --cpus=64 --memory_gb=512 --slurm.partition=gpu --slurm.account=xray "
    f"--slurm.sbatch=[--qos=long,--exclusive] --env=[NCCL_SOCKET_IFNAME=ib0,GLOO_SOCKET_IFNAME=ib0] -- {_PAPER}",
    "slurm-deepspeed.sh": "slurm --nodes=2 --gpus=4 --slurm.launcher=deepspeed --slurm.hours=4 "
    f"-- {_PAPER} --engine.kind=deepspeed",
    "slurm-array.sh": "slurm --gpus=1 --slurm.seeds=[0,1] --slurm.fractions=[1,10] --env=['NOTE=a b; c'] -- "
    "sternum pretrain runs/{fraction}-{seed} --seed={seed} --data.fraction_percent={fraction} "
    "--config=gazda2021 --data.shards=[shards/chexpert]",
    "slurm-shard.sh": "slurm --cpus=32 --name=pack -- sternum shard chexpert --root='/data/My CheXpert' --out=shards/x",
    "slurm-probe.sh": "slurm --nodes=4 --gpus=1 -- sternum probe runs/paper --data.shards=[shards/cell]",
    "slurm-shard-4-nodes.sh": "slurm --nodes=4 --cpus=32 -- sternum shard chexpert --root=/data --out=shards/x",
    "slurm-embed.sh": "slurm --nodes=2 --gpus=8 -- sternum embed shards/chexpert --backbone=runs/paper --out=f.npz",
    "slurm-doctor.sh": "slurm --nodes=4 --gpus=8 -- sternum doctor --folders=[/shared/runs]",
    "trainjob.yaml": f"kubernetes --nodes=4 --gpus=8 --cpus=64 --memory_gb=512 {_POD} --kubernetes.rdma=rdma/hca "
    f"--kubernetes.shared_memory_gb=64 --kubernetes.node_selector=[gpu=h100] -- {_PAPER_IN_POD}",
    "pytorchjob.yaml": f"kubernetes --nodes=2 --gpus=4 {_POD} --kubernetes.kind=PyTorchJob -- {_PAPER_IN_POD}",
    "job-pretrain.yaml": f"kubernetes --gpus=2 {_POD} --kubernetes.kind=Job -- {_PAPER_IN_POD}",
    "job-shard.yaml": f"kubernetes --cpus=32 {_POD} --kubernetes.secrets=[object-store] -- sternum shard chexpert "
    "--root='/shards/My \"CheXpert\"' --out=s3://bucket/chexpert",
    "rayjob.yaml": f"kubernetes --nodes=3 --gpus=1 {_POD} -- sternum probe /runs/paper --data.shards=[/shards/cell]",
    "raycluster.yaml": f"kubernetes --nodes=3 --gpus=1 {_POD} --name=probes",
    "ray-up.yaml": "ray --ray.hosts=[10.0.0.1,10.0.0.2,10.0.0.3] --ray.ssh_user=xray --name=probes",
    "ray-job.json": "ray --env=[OMP_NUM_THREADS=1] -- sternum probe '/shared/runs/a b' --data.shards=[/shared/cell]",
}


def words_of(name: str) -> Sequence[str]:
    """Return the words after `sternum` that print a kept job."""
    kind, *words = shlex.split(JOBS[name])
    return ["submit", kind, "--dry_run=true", *words]


def printed(name: str) -> str:
    """Return what `sternum submit --dry_run=true` prints for a kept job."""
    with redirect_stdout(StringIO()) as output:
        code = main(words_of(name))
    assert code == 0
    return output.getvalue()


if __name__ == "__main__":
    for name in JOBS:
        (FOLDER / name).write_text(printed(name))
