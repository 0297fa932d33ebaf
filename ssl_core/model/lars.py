"""LARS, for global batches of thousands: SGD with momentum whose step is proportional to the size of each weight.

No dependency implements it: torch.optim does not, and timm would be added for this alone.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv:1708.03888), as SimCLR uses it (Chen et al. 2020).

    For a weight w with gradient g:  g' = g + weight_decay w;  r = trust |w| / |g'|, or 1 where either norm is 0;
    v <- momentum v + learning rate r g';  w <- w - v.  In a parameter group with `adapted` False, r is 1.

    It needs each weight as a whole, so an engine that cuts optimizer states into flat pieces cannot run it.

    As in torch's fused optimizers, nothing changes in a step where the attribute `found_inf`, a 0-dim tensor, is 1.

    State of each parameter: `momentum_buffer`, v.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust, "adapted": True}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step; parameters without a gradient stay unchanged."""
        assert closure is None, "LARS takes no closure"
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(group, weights)

    def _step(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Step all weights of a group together, without waiting for the device."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]  # `step` drops the others
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        rates = torch.full((len(weights),), group["lr"], dtype=weights[0].dtype, device=weights[0].device)
        if group["adapted"]:
            rates = rates * _trust_ratios(weights, gradients, group["trust"])
        velocities = [self._velocity(weight) for weight in weights]
        moved = list(torch._foreach_mul(velocities, group["momentum"]))
        torch._foreach_add_(moved, list(torch._foreach_mul(gradients, rates.unbind())))
        old, new = [*velocities, *weights], [*moved, *torch._foreach_sub(weights, moved)]
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None:
            new = [torch.where(found_inf > 0, *pair) for pair in zip(old, new, strict=True)]
        torch._foreach_copy_(old, new)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        velocity: Tensor = state["momentum_buffer"]
        return velocity


def _trust_ratios(weights: list[Tensor], gradients: list[Tensor], trust: float) -> Tensor:
    """Return trust |w| / |g| of each of n weights, 1 if either norm is 0: (n,)."""
    weight_norms = torch.stack(torch._foreach_norm(weights))
    gradient_norms = torch.stack(torch._foreach_norm(gradients))
    usable = (weight_norms > 0) & (gradient_norms > 0)
    return torch.where(usable, trust * weight_norms / gradient_norms, 1.0)
