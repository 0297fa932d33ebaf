"""`sternum pretrain`; in several processes `torchrun -m launch.pretrain`, or `deepspeed --module launch.pretrain`."""

import sys
from collections.abc import Sequence

from infra.config import parse
from infra.processes import ranks_from_environment
from launch.cli import guarded
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.train import pretrain


def main(arguments: Sequence[str]) -> int:
    """Pretrain as the arguments say."""
    config = parse(
        PretrainConfig,
        arguments,
        command="pretrain",
        description="Pretrain a backbone on shards with NT-Xent, or resume the run in --run_folder.",
        examples=[
            "sternum pretrain --config=launch/configs/cpu.yaml --data.shards=[shards/cell] --run_folder=runs/first",
            "torchrun --nproc-per-node=2 -m launch.pretrain --config=launch/configs/cpu.yaml \\",
            "    --data.shards=[shards/cell] --data.splits=[train] --run_folder=runs/second",
        ],
        ignored=["local_rank"],  # DeepSpeed's launcher says it here too, and in the environment
    )
    pretrain(config, ranks_from_environment())
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
