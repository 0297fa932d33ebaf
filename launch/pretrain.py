"""`sternum pretrain`; with several processes `torchrun -m launch.pretrain` or `deepspeed --module launch.pretrain`."""

import sys
from collections.abc import Sequence

from infra.config import parse
from infra.processes import ranks_from_environment
from launch.builtin_configs import PRETRAIN_CONFIGS
from launch.cli import run_command
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.train import pretrain


def main(arguments: Sequence[str]) -> int:
    """Pretrain, or resume the run in the folder."""
    config = parse(
        PretrainConfig,
        arguments,
        command="pretrain",
        description=("Pretrain a backbone on shards with the NT-Xent loss. Run the same command again to resume."),
        examples=[
            "sternum pretrain runs/first --config=cpu --data.shards=[shards/cell] --data.splits=[train]",
            "torchrun --nproc-per-node=2 -m launch.pretrain runs/paper --config=gazda2021 \\",
            "    --data.shards=[shards/chexpert]",
        ],
        subject="run_folder",
        ignored=["local_rank"],  # DeepSpeed's launcher adds it, and sets LOCAL_RANK too
        configs=PRETRAIN_CONFIGS,
    )
    pretrain(config, ranks_from_environment())
    return 0


if __name__ == "__main__":  # torchrun and deepspeed start a module; all other commands start with sternum
    sys.exit(run_command(main, sys.argv[1:]))
