"""A network as an ONNX file; import this module only after `require_extra("onnx", ...)`."""

from pathlib import Path
from typing import Final

import onnxruntime
import torch
from torch import nn

from infra.errors import RunFailed
from ssl_core.checkpoints.export.check import TOLERANCE, Reference

ONNX: Final = "model.onnx"
INPUT: Final = "images"
OUTPUT: Final = "features"


def write_onnx(folder: Path, module: nn.Module, expected: Reference) -> None:
    """Write `model.onnx`, which takes any number of images, and compare its features in onnxruntime.

    Args:
        folder: the export
        module: (N, channels, size, size) -> (N, D), in evaluation mode
        expected: the features that the file must give

    Raises:
        RunFailed: if torch cannot express the network in ONNX, or the features differ
    """
    try:
        program = torch.onnx.export(
            module,
            (expected.images,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("count")},),
        )
    except Exception as error:  # each of a thousand networks has its own way to fail
        reason = " ".join(str(error).split())[:200]
        raise RunFailed(f"torch cannot write this network as ONNX ({reason}); export it with --onnx=false") from error
    assert program is not None, "torch returns None only if it writes the file itself"
    program.save(folder / ONNX)
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
    for count in (1, len(expected.images)):
        part = expected.first(count)
        (values,) = session.run([OUTPUT], {INPUT: part.images.numpy()})
        if part.difference(torch.from_numpy(values)) > 1:
            raise RunFailed(
                f"the features of the ONNX file differ from those of the network by more than {TOLERANCE:g} for a "
                f"batch of {count}; export it with --onnx=false"
            )
