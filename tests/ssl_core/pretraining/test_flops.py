import pytest
import torch
from torch import nn

from ssl_core.pretraining.flops import peak_flop_per_s, training_flop
from ssl_core.views.spec import ViewSpec


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(images))


def test_counts_all_views_forward_and_twice_backward() -> None:
    network = OneLayer().train()
    of_a_pixel = 2 * 8 * 9
    assert training_flop(network, ViewSpec(size_px=32)) == 3 * 2 * 32 * 32 * of_a_pixel
    both = ViewSpec(size_px=32, small_views=4, small_size_px=16)
    assert training_flop(network, both) == 3 * (2 * 32 * 32 + 4 * 16 * 16) * of_a_pixel
    assert not network.state_dict()["norm.running_mean"].any()  # nothing was computed


class NeedsNumbers(OneLayer):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * float(images.sum())


def test_a_network_that_cannot_be_counted_is_named_and_has_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert training_flop(NeedsNumbers(), ViewSpec(size_px=32)) is None
    assert "warning: the operations of this network cannot be counted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "tflop_per_s"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10G", None),  # another GPU than the A10
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_only_known_devices_have_a_peak(name: str, tflop_per_s: float | None) -> None:
    assert peak_flop_per_s(name, "bf16") == (tflop_per_s and tflop_per_s * 1e12)
    assert peak_flop_per_s("NVIDIA A100-PCIE-40GB", "fp32") == 19.5e12
