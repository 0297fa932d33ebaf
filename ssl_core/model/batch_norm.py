"""Batch normalization over the global batch, on CPUs and GPUs.

torch's SyncBatchNorm is not used. It rejects CPU tensors, so a machine without GPUs could not test it. On GPUs its
boolean masks stop the host three times a layer and break `torch.compile`, and under autocast a rank without rows sends
another type than the others, which no collective survives.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from infra.ranks.processes import world_size

_REDUCED: Final = (torch.bfloat16, torch.float16)


class _Normalize(torch.autograd.Function):
    """Normalization by the statistics of all ranks' rows (Ioffe and Szegedy 2015), with gradients through them.

    Each pass has one all-reduce, in float64 in every precision. A rank without rows adds zeros to it. Rows that do not
    count are zeros here and have no gradient, so the shapes stay the same whichever they are. Nothing here waits for
    the GPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, counted: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalized input, the global mean and variance (C,), and the number of values of a channel."""
        if counted is not None:
            x = x.where(_rows_counted(counted, x), 0)
        local_mean, local_variance = (moment.double() for moment in _moments(x))
        numbers = torch.full_like(local_mean[:1], x.numel() // x.shape[1])
        mine = numbers if counted is None else numbers * counted.sum() / len(counted)
        # Moments add up. In float64, E[x^2] - E[x]^2 cancels less than what fp32 inputs resolve.
        sums = torch.cat([mine, numbers * local_mean, numbers * (local_variance + local_mean**2)])  # (1 + 2 C,)
        _sum_over_ranks(sums)
        count = sums[:1]
        divisor = count if counted is None else count.clamp(min=1)  # of a micro-batch all samples may be masked
        exact_mean, squares = (sums[1:] / divisor).chunk(2)
        mean = exact_mean.to(weight.dtype)
        variance = (squares - exact_mean**2).clamp(min=0).to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, variance, divisor, counted)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return _affine(x, weight, bias, mean, variance, eps), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return dL/dx, and this rank's share of dL/dweight and dL/dbias (the engine averages those over ranks)."""
        x, weight, mean, variance, count, counted = ctx.saved_tensors
        fused = x.is_cuda and len(x) > 0 and not torch.compiler.is_compiling()
        of_device = _fused_backward if fused else _plain_backward
        dx, dweight, dbias = of_device(gradients[0], x, weight, mean, variance, count, ctx.eps)
        if counted is not None:
            dx = dx.where(_rows_counted(counted, x), 0)
        return dx, dweight, dbias, None, None


def _sum_over_ranks(sums: Tensor) -> None:
    if world_size() > 1:
        dist.all_reduce(sums)


def _rows_counted(counted: Tensor, x: Tensor) -> Tensor:
    """Return which rows of x count, to broadcast over x; a sample may have several rows, one after the other."""
    return _over(counted.repeat_interleave(len(x) // len(counted)), x, dim=0)


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    """Return weight (x - mean) / std + bias in the type of x."""
    if len(x) == 0:  # torch's CUDA kernel has no launch for it
        return torch.empty_like(x)
    return torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,) each, in at least fp32; zeros without rows."""
    dtype = torch.float32 if x.dtype in _REDUCED else x.dtype
    if len(x) == 0:
        zeros = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
        return zeros, zeros
    if torch.compiler.is_compiling():  # it fuses these two with their neighbors
        variance, mean = torch.var_mean(x.to(dtype), _axes(x), correction=0)
        return mean, variance
    if x.is_cuda:  # one pass by Welford's method, in fp32 for types below
        return torch.batch_norm_update_stats(x, None, None, 0.0)
    if x.dtype in _REDUCED:
        # torch's fused kernel reads x once. Its error (measured up to 4e-4 of the variance) is below the resolution of
        # bf16 (4e-3), near that of fp16 (5e-4), but above that of fp32.
        unused = torch.zeros(2, x.shape[1])
        return torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
    mean = x.mean(_axes(x))
    return mean, (x - _over(mean, x)).square_().mean(_axes(x))


def _fixed_statistics_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dweight and dbias of batch norm with constant statistics."""
    if len(x) == 0:
        return torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
    if x.dtype in _REDUCED:
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, eps, [True, True, True]
        )
        return gradients
    inverse_std = torch.rsqrt(variance + eps)
    dweight = (dy * (x - _over(mean, x))).sum(_axes(x)) * inverse_std
    return dy * _over(weight * inverse_std, x), dweight, dy.sum(_axes(x))


def _plain_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dweight and dbias."""
    inverse_std = torch.rsqrt(variance + eps)
    direct, dweight, dbias = _fixed_statistics_backward(dy, x, weight, mean, variance, eps)
    sums = torch.stack([dbias.double(), dweight.double()])
    _sum_over_ranks(sums)
    dbias_mean, dweight_mean = (sums / count).to(weight.dtype)
    # The gradient through the statistics, -scale (mean(dy) + xhat mean(dy xhat)), is an affine map of x.
    slope = -weight * inverse_std * dweight_mean
    shift = -weight * inverse_std * dbias_mean
    return direct.add_(_affine(x, slope, shift, mean, variance, eps)), dweight, dbias


def _fused_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, count: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dweight and dbias by torch's CUDA kernels, which read x and dy twice and write once.

    Their count is a tensor, so that the host need not know the ranks' numbers of rows.
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        dy = dy.contiguous(memory_format=torch.channels_last)
    else:
        dy, x = dy.contiguous(), x.contiguous()
    inverse_std = torch.rsqrt(variance + eps)
    dy_sum, dy_x_sum, dweight, dbias = torch.batch_norm_backward_reduce(
        dy, x, mean, inverse_std, weight, True, True, True
    )
    sums = torch.stack([dy_sum.double(), dy_x_sum.double()])
    _sum_over_ranks(sums)
    dy_sum, dy_x_sum = sums.to(mean.dtype)
    dx = torch.batch_norm_backward_elemt(dy, x, mean, inverse_std, weight, dy_sum, dy_x_sum, count.int())
    return dx, dweight, dbias


def _over(values: Tensor, x: Tensor, dim: int = 1) -> Tensor:
    """Reshape one value for each channel (C,), or for each row (N,) with dim=0, to broadcast over x (N, C, ...)."""
    return values.view(*[1] * dim, -1, *[1] * (x.dim() - 1 - dim))


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks' rows, which may differ in number; the ordinary layer if there is one rank.

    Attributes:
        counted: which rows of the next input count, see `rows_counted`; None if all do
    """

    counted: Tensor | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2, f"batch norm takes (N, C, ...), not {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, ...) and update the running statistics like torch's batch norm."""
        if not self.training or (world_size() == 1 and self.counted is None):
            normalized: Tensor = super().forward(input)
            return normalized
        y: Tensor
        y, mean, variance, count = _Normalize.apply(input, *self._scale_and_shift(), self.eps, self.counted)
        if self.track_running_stats:
            self._follow(mean, (variance * count / (count - 1)).to(variance.dtype), count)
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Let the running statistics follow those of a batch, unless none of its rows counts."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        momentum: float | Tensor = self.momentum
        if self.counted is not None:
            momentum = self.momentum * (count > 0).to(mean.dtype)
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        if self.affine:
            return self.weight, self.bias
        assert self.running_mean is not None
        return torch.ones_like(self.running_mean), torch.zeros_like(self.running_mean)


@contextmanager
def rows_counted(module: nn.Module, counted: Tensor | None) -> Iterator[None]:
    """Normalize by some rows within the block; the others have no part in statistics and gradients.

    Args:
        module: the network
        counted: (N,) bool on its device, of the samples that enter the network; None if all count
    """
    layers = [layer for layer in module.modules() if isinstance(layer, GlobalBatchNorm)] if counted is not None else []
    for layer in layers:
        layer.counted = counted
    try:
        yield
    finally:
        for layer in layers:
            layer.counted = None


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalize by the batch within the block, as in training, but keep the running statistics unchanged."""
    norms = (layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm))
    layers = [layer for layer in norms if layer.track_running_stats]  # a block within a block changes nothing
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def synchronize_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every batch norm in `module` by one over the global batch, with the same parameters, buffers and keys."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            assert child.running_mean is not None
            like: dict[str, Any] = {"device": child.running_mean.device, "dtype": child.running_mean.dtype}
            layer = GlobalBatchNorm(child.num_features, child.eps, child.momentum, child.affine, **like)
            layer.load_state_dict(child.state_dict())
            setattr(module, name, layer)
        else:
            synchronize_batch_norm(child)
    return module
