"""The device of a process: a GPU, or the CPU where that is meant and not merely what is left."""

import os
import re
from pathlib import Path
from typing import Final, Literal

import torch
from torch import Tensor

from infra.errors import UserError, require
from infra.ranks.processes import Ranks

DeviceName = Literal["auto", "cuda", "cpu"]

GPU_FILE: Final = Path("/dev/nvidia0")
DRIVER_FILE: Final = Path("/proc/driver/nvidia/version")
_HIDDEN: Final = "CUDA_VISIBLE_DEVICES"
_BF16_UNITS: Final = ("amx_bf16", "bf16")  # the second one is that of Arm; AVX-512 bf16 alone was slower than fp32
_LEAST_DRIVER: Final = {"12": 525, "13": 580}  # by major version of CUDA, as its release notes say


def device_of(ranks: Ranks, name: DeviceName = "auto", setting: str = "auto") -> torch.device:
    """Return the device of this process: its own GPU, or the CPU.

    Args:
        ranks: this process among all
        name: cuda, cpu, or auto, which is the CPU only on a machine without GPUs or where they are hidden
        setting: where `name` comes from, such as `train.device=auto`, for messages

    Raises:
        UserError: if the machine has a GPU that torch cannot use, which would train on CPUs for weeks; if there are
            more processes than GPUs; if there is none for `cuda`
    """
    if name == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        require(
            ranks.local_rank < gpus,
            f"local rank {ranks.local_rank} has no GPU: this machine has {gpus}; lower --nproc-per-node",
        )
        return torch.device("cuda", ranks.local_rank)
    hidden = os.environ.get(_HIDDEN) in ("", "-1")
    if GPU_FILE.exists() and not hidden:
        raise UserError(
            f"{setting}, but torch cannot use the GPU of this machine: {_why_unusable()}; to train on CPUs all the "
            f'same, hide it with {_HIDDEN}=""'
        )
    require(name == "auto", f"{setting}, but {'the GPU is hidden' if hidden else 'there is no GPU'}; use cpu or auto")
    return torch.device("cpu")


def _why_unusable() -> str:
    """Say what is missing between torch and the GPU."""
    cuda = torch.version.cuda
    if cuda is None:
        return "this build of torch has no CUDA; install one that has"
    least = _LEAST_DRIVER.get(cuda.partition(".")[0])
    needs = f", which needs driver {least} or newer" if least else ""
    return f"the driver is {driver_version() or 'unknown'}, and torch {torch.__version__} has CUDA {cuda}{needs}"


def driver_version() -> str | None:
    """Return the version of NVIDIA's kernel driver, such as 580.65.06; None without one."""
    try:
        text = DRIVER_FILE.read_text(errors="replace")
    except OSError:
        return None
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found and found[0]


def use_ieee_fp32() -> None:
    """Let fp32 on GPUs be IEEE's single precision; by default torch's convolutions round their inputs to 10 bits.

    The newer `fp32_precision` leaves `cudnn.allow_tf32` as it is, and torch.export refuses to work while they differ.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def has_bf16_matrix_units(device: torch.device) -> bool:
    """Return whether a device has units that multiply matrices in bf16; other CPUs are slower in bf16 than in fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16_UNITS)


def tune_convolutions() -> None:
    """Let cuDNN try its kernels once for each shape and keep the fastest; the shapes of a training do not change."""
    torch.backends.cudnn.benchmark = True


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device; a GPU gets it in its stream, and the host does not wait for that."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
