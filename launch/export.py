"""`sternum export`: writes the backbone of a run for other libraries."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.configuration.config import parse
from infra.configuration.options import key, require_at_least, setting
from infra.errors import require
from infra.extras import require_extra
from infra.signals import sigterm_interrupts


@dataclass(frozen=True)
class ExportConfig:
    """The checkpoint to export, and the forms to write.

    Args:
        run_folder: run whose backbone to export
        out: a new or empty folder for the export
        checkpoint: last, or an epoch such as 50
        channels: of the images; 1 as trained, or 3 for programs that repeat a gray image in three channels, with the
            same features
        onnx: also write model.onnx, which needs the extra onnx
    """

    run_folder: Path
    out: Path
    checkpoint: Literal["last"] | int = "last"
    channels: Literal[1, 3] = 1
    onnx: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.checkpoint, int):
            require_at_least(self, "checkpoint", 0, "use last")
        if self.onnx:
            require_extra("onnx", setting(self, "onnx").lower(), f"add --{key(self, 'onnx')}=false")
        is_new = not self.out.exists() or (self.out.is_dir() and not any(self.out.iterdir()))
        require(is_new, f"{setting(self, 'out')} exists and is not an empty folder; name a new folder, or remove it")


def main(arguments: Sequence[str]) -> int:
    """Write the export and print its folder."""
    config = parse(
        ExportConfig,
        arguments,
        command="export",
        description=(
            "Write the backbone of a checkpoint as a folder that torchvision, timm, transformers and onnxruntime load "
            "without Sternum: weights, preprocessing, and a model card with data, recipe and scores."
        ),
        examples=[
            "sternum export runs/first --out=exports/first",
            "sternum export runs/first --checkpoint=50 --out=exports/first-50 --channels=3",
        ],
        subject="run_folder",
    )
    from evaluation.report.export import export  # noqa: PLC0415  # --help and mistakes need no torch

    with sigterm_interrupts():
        epoch = config.checkpoint if isinstance(config.checkpoint, int) else None
        export(config.run_folder, config.out, epoch, config.channels, onnx=config.onnx)
    sys.stdout.write(f"{config.out}\n")
    return 0
