"""Convolutions with small output maps as matrix products on CPUs.

The last stages of a ResNet see maps of 1 x 1 to 6 x 6 positions when images have 32 to 96 pixels. There oneDNN, which
runs `conv2d` on CPUs, mostly rearranges weights: training a 3 x 3 convolution of 512 channels on 2 x 2 positions
takes almost four times as long as the same arithmetic as a matrix product (benchmarks/convolution.py).
"""

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# The matrix product is faster from this many weights per output position (benchmarks/convolution.py).
_LEAST_WEIGHTS: Final = {torch.bfloat16: 8_000, torch.float32: 50_000}


class MatrixConv2d(nn.Conv2d):
    """A `Conv2d` without bias, groups, or dilation that multiplies matrices if its output map is small."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve (N, C, H, W)."""
        assert isinstance(self.padding, tuple), "use_matrix_products skips layers whose padding is a name"
        size, stride, padding = self.kernel_size[0], self.stride[0], self.padding[0]
        height, width = ((side + 2 * padding - size) // stride + 1 for side in input.shape[2:])
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        if self.weight.numel() < _LEAST_WEIGHTS.get(dtype, math.inf) * height * width:
            return super().forward(input)
        return matrix_conv2d(input.to(dtype), self.weight.to(dtype), stride, padding)


def matrix_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve as `torch.nn.functional.conv2d` does, by one matrix product; differentiable once.

    Args:
        x: (N, C, H, W)
        weight: (out, C, size, size), of the same data type
        stride: of the windows, in both directions
        padding: zeros at each side, in both directions

    Returns:
        (N, out, height, width), channels last in memory.
    """
    return _MatrixConvolution.apply(x, weight, stride, padding)


class _MatrixConvolution(torch.autograd.Function):
    """Product of the input windows and the weights; tensors are channels-last inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        """Convolve x (N, C, H, W) with weight (out, C, size, size)."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        matrix = weight.permute(2, 3, 1, 0).flatten(0, 2)
        return (_windows(x, weight.shape[2], stride, padding) @ matrix).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to x and weight."""
        x, weight = ctx.saved_tensors
        [dy] = gradients
        out, channels, size, _ = weight.shape
        windows = _windows(x, size, ctx.stride, ctx.padding).flatten(0, 2)
        dweight = dy.permute(0, 2, 3, 1).flatten(0, 2).t() @ windows
        dweight = dweight.view(out, size, size, channels).permute(0, 3, 1, 2)
        return _input_gradient(dy, x, weight, ctx.stride, ctx.padding), dweight, None, None


def _windows(x: Tensor, size: int, stride: int, padding: int) -> Tensor:
    """Copy the window of x (N, C, H, W) at each output position: (N, height, width, size * size * C)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    return padded.unfold(1, size, stride).unfold(2, size, stride).permute(0, 1, 2, 4, 5, 3).flatten(3)


def _input_gradient(dy: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return the gradient with respect to x; with stride 1, a convolution of dy with the flipped weight."""
    if stride == 1:
        size = weight.shape[2]
        matrix = weight.flip(2, 3).permute(2, 3, 0, 1).flatten(0, 2)
        return (_windows(dy, size, 1, size - 1 - padding) @ matrix).permute(0, 3, 1, 2)
    only_x = [True, False, False]
    gradient: Tensor = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, only_x
    )[0]
    return gradient


def use_matrix_products(module: nn.Module) -> None:
    """Turn each suitable convolution in `module` into a `MatrixConv2d`; parameters and keys stay the same."""
    for child in module.modules():
        if type(child) is nn.Conv2d and _is_plain(child):
            child.__class__ = MatrixConv2d


def _is_plain(layer: nn.Conv2d) -> bool:
    sides = (layer.kernel_size, layer.stride, layer.padding)
    is_square = all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in sides)
    return is_square and layer.bias is None and layer.groups == 1 and layer.dilation == (1, 1)
