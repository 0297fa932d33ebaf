import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from infra.ranks import devices
from infra.ranks.devices import device_of, has_bf16_matrix_units
from infra.ranks.processes import Ranks


@pytest.fixture
def unusable_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine whose GPU torch cannot use, with an old driver."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    for name in ("gpu", "driver"):
        (tmp_path / name).write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 2024\n")
    monkeypatch.setattr(devices, "GPU_FILE", tmp_path / "gpu")
    monkeypatch.setattr(devices, "DRIVER_FILE", tmp_path / "driver")
    return tmp_path / "gpu"


def test_a_gpu_that_torch_cannot_use_is_refused_with_the_driver_that_it_needs(unusable_gpu: Path) -> None:
    with pytest.raises(UserError) as raised:
        device_of(Ranks(), "auto", "train.device=auto")
    assert str(raised.value).startswith("train.device=auto, but torch cannot use the GPU of this machine: ")
    assert "the driver is 550.54.15" in str(raised.value)
    assert "CUDA 13.2, which needs driver 580 or newer; to train on CPUs" in str(raised.value)
    assert device_of(Ranks(), "cpu") == torch.device("cpu")


def test_a_gpu_that_the_user_hides_is_not_missed(unusable_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_of(Ranks()) == torch.device("cpu")
    with pytest.raises(UserError, match=r"^train\.device=cuda, but the GPU is hidden; use cpu or auto$"):
        device_of(Ranks(), "cuda", "train.device=cuda")


def test_a_machine_without_a_gpu_trains_on_its_cpu(unusable_gpu: Path) -> None:
    unusable_gpu.unlink()
    assert device_of(Ranks()) == torch.device("cpu")
    with pytest.raises(UserError, match="there is no GPU; use cpu or auto"):
        device_of(Ranks(), "cuda")


def test_every_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(Ranks(5, 8, 1, 2)) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="local rank 2 has no GPU: this machine has 2; lower --nproc-per-node"):
        device_of(Ranks(2, 8, 2, 4))


def test_fp32_means_ieee_single_precision_and_networks_can_still_be_exported() -> None:
    code = """
import torch
from infra.ranks.devices import use_ieee_fp32
use_ieee_fp32()
assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False
assert "tf32" not in (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision)
torch.export.export(torch.nn.Conv2d(1, 1, 1).eval(), (torch.zeros(1, 1, 4, 4),))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("unit", "has_units"), [("amx_bf16", True), ("bf16", True), ("avx512_bf16", False)])
def test_a_cpu_without_matrix_units_for_bf16_is_known(
    unit: str, has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, unit: True})
    assert has_bf16_matrix_units(torch.device("cpu")) == has_units
