"""`sternum pretrain`; with several processes `torchrun -m launch.pretrain` or `deepspeed --module launch.pretrain`."""

import sys
from collections.abc import Sequence
from typing import Final

from infra.configuration.config import parse
from infra.ranks.process_group import end_process
from infra.ranks.processes import ranks_from_environment
from launch.builtin_configs import PRETRAIN_CONFIGS
from launch.cli import run_command
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.pretraining.plan import check_plan
from ssl_core.pretraining.train import pretrain

_CHECK: Final = "--check"


def main(arguments: Sequence[str]) -> int:
    """Pretrain, or resume the run in the folder; with --check, only look at everything that the run needs."""
    config = parse(
        PretrainConfig,
        [word for word in arguments if word != _CHECK],
        command="pretrain",
        description="Pretrain a backbone on shards with the NT-Xent loss. Run the same command again to resume. With "
        f"{_CHECK}, train nothing: look at data, views, model, memory, steps, disk and labels, one line each.",
        examples=[
            f"sternum pretrain runs/first --config=cpu --data.shards=[shards/cell] {_CHECK}",
            "sternum pretrain runs/first --config=cpu --data.shards=[shards/cell] --data.splits=[train]",
            "torchrun --nproc-per-node=2 -m launch.pretrain runs/paper --config=gazda2021 \\",
            "    --data.shards=[shards/chexpert]",
        ],
        subject="run_folder",
        ignored=["local_rank"],  # DeepSpeed's launcher adds it, and sets LOCAL_RANK too
        configs=PRETRAIN_CONFIGS,
    )
    ranks = ranks_from_environment()
    if _CHECK not in arguments:
        pretrain(config, ranks)
    elif ranks.is_first:
        for fact in check_plan(config, ranks):
            sys.stdout.write(f"{fact}\n")
    return 0


if __name__ == "__main__":  # torchrun and deepspeed start a module; all other commands start with sternum
    end_process(lambda: run_command(main, sys.argv[1:]))
