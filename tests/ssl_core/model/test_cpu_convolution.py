import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ssl_core.model.cpu_convolution import MatrixConv2d, matrix_conv2d, use_matrix_products
from ssl_core.model.encoder import Backbone


def input_and_weight(
    samples: int, side: int, channels: int, size: int, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(samples, channels, side, side, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(2 * channels, channels, size, size, generator=draw, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), weight.requires_grad_()


@given(
    samples=st.integers(0, 3),
    side=st.integers(1, 7),
    channels=st.integers(1, 4),
    size=st.sampled_from([1, 3, 5, 7]),
    stride=st.integers(1, 3),
)
def test_matrix_product_and_its_gradients_equal_those_of_conv2d(
    samples: int, side: int, channels: int, size: int, stride: int
) -> None:
    x, weight = input_and_weight(samples, side, channels, size)
    expected = F.conv2d(x, weight, None, stride, size // 2)
    result = matrix_conv2d(x, weight, stride, size // 2)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    if samples == 0:
        return
    dy = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(result, (x, weight), dy), torch.autograd.grad(expected, (x, weight), dy), strict=True
    )
    for gradient, by_conv2d in pairs:
        torch.testing.assert_close(gradient, by_conv2d, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_rounding_is_that_of_the_data_type(dtype: torch.dtype, tolerance: float) -> None:
    x, weight = input_and_weight(8, 2, 256, 3, dtype)
    exact = F.conv2d(x.double(), weight.double(), None, 1, 1)
    result = matrix_conv2d(x, weight, 1, 1).double()
    assert (result - exact).norm() < tolerance * exact.norm()


def test_a_backbone_keeps_its_keys_its_features_and_its_gradients() -> None:
    torch.manual_seed(0)
    plain, fast = Backbone("resnet18"), Backbone("resnet18")
    fast.load_state_dict(plain.state_dict())
    use_matrix_products(fast)
    replaced = [name for name, module in fast.named_modules() if isinstance(module, MatrixConv2d)]
    assert "resnet.layer4.1.conv2" in replaced
    assert fast.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(16, 1, 64, 64)
    for backbone in (plain.eval(), fast.eval()):  # batch statistics of few images would magnify the rounding
        backbone(images).square().mean().backward()
    torch.testing.assert_close(fast(images), plain(images), rtol=1e-4, atol=1e-5)
    for (name, parameter), other in zip(fast.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None
        assert other.grad is not None
        difference = (parameter.grad - other.grad).norm() / other.grad.norm()
        assert difference < 1e-4, name


def test_unsupported_convolutions_stay_unchanged() -> None:
    others = nn.ModuleList(
        [
            nn.Conv2d(8, 8, 3, padding=1, bias=True),
            nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, bias=False),
            nn.Conv2d(8, 8, (1, 3), bias=False),
            nn.Conv2d(8, 8, 3, padding="same", bias=False),
        ]
    )
    use_matrix_products(others)
    assert all(type(module) is nn.Conv2d for module in others)
