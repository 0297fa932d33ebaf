"""`sternum embed`; with several processes `torchrun -m launch.embed`."""

import sys
from collections.abc import Sequence

from evaluation.inference.config import EmbedConfig
from evaluation.inference.embed import REFUSED, embed
from infra.configuration.config import parse
from infra.log import say
from infra.ranks.process_group import end_process
from infra.ranks.processes import ranks_from_environment
from infra.signals import sigterm_interrupts
from infra.words import counted
from launch.cli import run_command
from launch.refused_files import refusal


def main(arguments: Sequence[str]) -> int:
    """Write the features of all images.

    Raises:
        RunFailed: if files were refused, after the features of all others are written
    """
    config = parse(
        EmbedConfig,
        arguments,
        command="embed",
        description=(
            "Write the features that a frozen backbone gives to images, one row an image. Shards give exactly the "
            "features that a probe of the backbone sees; image files are prepared as packing would prepare them. Run "
            "the same command again to continue a killed one."
        ),
        examples=[
            "sternum embed shards/cell --backbone=runs/first --out=features.parquet",
            "sternum embed films --backbone=runs/first --out=features.csv",
            "sternum embed films --backbone=torchvision/resnet50.IMAGENET1K_V2 --out=features.npz",
            "torchrun --nproc-per-node=8 -m launch.embed shards/chexpert --backbone=runs/first --out=features.parquet",
        ],
        subject="source",
    )
    ranks = ranks_from_environment()
    with sigterm_interrupts():
        embedded = embed(config, ranks)
    if ranks.is_first:
        say(f"wrote the features of {counted(embedded.images, 'image')} to {config.out}")
    if embedded.refused:
        raise refusal(embedded.refused, config.out.with_suffix(REFUSED))
    return 0


if __name__ == "__main__":  # torchrun starts a module
    end_process(lambda: run_command(main, sys.argv[1:]))
