"""Floating-point operations of a training step, and how many of them a device can do at most."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from infra.log import say
from ssl_core.engines.train_config import Precision
from ssl_core.views.spec import VIEWS, ViewSpec

_TRAINING_PASSES: Final = 3  # forward, and a backward that costs twice as much

# Dense TFLOP/s with fp32 sums, as NVIDIA's data sheets state them (without sparsity): in bf16 or fp16 on tensor cores,
# and in fp32 without TF32, as `train.precision=fp32` computes.
_PEAK_TFLOP_PER_S: Final[dict[str, tuple[float, float]]] = {
    "H200": (989.0, 67.0),
    "H100 NVL": (835.0, 60.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),  # SXM
    "A100": (312.0, 19.5),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
}


def peak_flop_per_s(device_name: str, precision: Precision) -> float | None:
    """Return the most that a device can compute; None if that is not known, also for a part of a GPU (MIG).

    Args:
        device_name: as `torch.cuda.get_device_name` returns it, such as "NVIDIA H100 80GB HBM3"
        precision: train.precision
    """
    words = device_name.replace("-", " ").split()
    for name, (reduced, fp32) in _PEAK_TFLOP_PER_S.items():
        if all(part in words for part in name.split()) and "MIG" not in words:
            return 1e12 * (fp32 if precision == "fp32" else reduced)
    return None


def training_flop(encoder: nn.Module, spec: ViewSpec) -> float | None:
    """Return the operations that one sample takes in a step; a multiplication and an addition count as two.

    They are those of the model: all views forward, and twice as many backward. What gradient caching computes again
    does not count. The passes run on the meta device, so they take milliseconds.

    Args:
        encoder: the encoder, before an engine has changed it
        spec: the views of a sample

    Returns:
        The number; None, with a warning, for a network that cannot be counted.
    """
    sizes = [spec.size_px] * VIEWS + [*spec.small_sizes_px]
    try:
        forward = {size_px: _forward_flop(encoder, size_px) for size_px in sorted({*sizes})}
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        say(f"warning: the operations of this network cannot be counted ({reason}); its FLOP/s are not logged")
        return None
    return _TRAINING_PASSES * sum(forward[size_px] for size_px in sizes)


@torch.no_grad()
def _forward_flop(encoder: nn.Module, size_px: int) -> float:
    tensors: dict[str, Tensor] = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    state = {name: tensor.to("meta") for name, tensor in tensors.items()}
    images = torch.empty(2, 1, size_px, size_px, device="meta")  # batch norm needs two
    with FlopCounterMode(display=False) as counter:
        functional_call(encoder, state, images)
    return float(counter.get_total_flops() / 2)
