"""Batch normalization over the global batch, on GPUs and CPUs.

torch's SyncBatchNorm rejects CPU tensors; `GlobalBatchNorm` is the same layer over gloo, with the same state keys.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_REDUCED: Final = (torch.bfloat16, torch.float16)


class _Normalize(torch.autograd.Function):
    """Normalization by the statistics of all ranks' rows (Ioffe and Szegedy 2015), with gradients through them.

    A rank without rows joins the collectives and adds nothing; at least one rank has rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the normalized input, the global mean and variance (C,), and the number of values of a channel."""
        mean, variance = _moments(x)
        local = torch.stack([mean, variance, torch.full_like(mean, x.numel() // x.shape[1])])
        ranks = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(ranks, local)
        means, variances, counts = torch.stack(ranks).unbind(1)  # each (W, C)
        # Merge the moments as in Chan et al. 1979; E[x^2] - E[x]^2 would cancel in fp32.
        count = counts.sum(0)
        mean = (means * counts).sum(0) / count
        variance = ((variances + (means - mean) ** 2) * counts).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        y = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return dL/dx, and this rank's share of dL/dweight and dL/dbias (the engine averages those over ranks)."""
        x, weight, mean, variance, count = ctx.saved_tensors
        inverse_std = torch.rsqrt(variance + ctx.eps)
        direct, dweight, dbias = _fixed_statistics_backward(gradients[0], x, weight, mean, variance, ctx.eps)
        sums = torch.stack([dbias, dweight])
        dist.all_reduce(sums)
        dbias_mean, dweight_mean = sums / count
        # The gradient through the statistics, -scale (mean(dy) + xhat mean(dy xhat)), is an affine map of x.
        slope = -weight * inverse_std * dweight_mean
        shift = -weight * inverse_std * dbias_mean
        through = torch.native_batch_norm(x, slope, shift, mean, variance, False, 0.0, ctx.eps)[0]
        return direct.add_(through), dweight, dbias, None


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance of each channel, (C,) each, in at least fp32; zeros without rows."""
    if len(x) == 0:
        zeros = torch.zeros(x.shape[1], dtype=torch.float32 if x.dtype in _REDUCED else x.dtype, device=x.device)
        return zeros, zeros
    if x.dtype in _REDUCED:
        # torch's fused kernel reads x once. Its error (measured up to 4e-4 of the variance) is below the resolution of
        # bf16 (4e-3), near that of fp16 (5e-4), but above that of fp32.
        unused = torch.zeros(2, x.shape[1])
        mean, variance = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        return mean, variance
    mean = x.mean(_axes(x))
    return mean, (x - _rows(mean, x)).square_().mean(_axes(x))


def _fixed_statistics_backward(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, dweight and dbias of batch norm with constant statistics."""
    if x.dtype in _REDUCED and len(x) > 0:  # torch 2.15's kernel divides by the number of rows
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, eps, [True, True, True]
        )
        return gradients
    inverse_std = torch.rsqrt(variance + eps)
    dweight = (dy * (x - _rows(mean, x))).sum(_axes(x)) * inverse_std
    return dy * _rows(weight * inverse_std, x), dweight, dy.sum(_axes(x))


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """Reshape one value for each channel (C,) to broadcast over x (N, C, ...)."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over all ranks' rows, which may differ in number; the ordinary layer if there is one rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() >= 2, f"batch norm takes (N, C, ...), not {tuple(input.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        """Normalize (N, C, ...) and update the running statistics like torch's batch norm."""
        if not (self.training and dist.is_initialized() and dist.get_world_size() > 1):
            normalized: Tensor = super().forward(input)
            return normalized
        y: Tensor
        y, mean, variance, count = _Normalize.apply(input, self.weight, self.bias, self.eps)
        if not self.track_running_stats:
            return y
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        return y


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Normalize by the batch within the block, as in training, but keep the running statistics unchanged."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def synchronize_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Replace every batch norm in `module` by one over the global batch, with the same parameters, buffers and keys."""
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return converted
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            layer = GlobalBatchNorm(child.num_features, child.eps, child.momentum).to(child.weight)
            layer.load_state_dict(child.state_dict())
            setattr(module, name, layer)
        else:
            synchronize_batch_norm(child, device)
    return module
