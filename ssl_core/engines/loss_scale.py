"""The scale of the loss in fp16."""

from typing import Final

import torch
from torch import Tensor

_INITIAL: Final = 2.0**16
_KEY: Final = "loss_scale"  # takes the position of a parameter's name in the optimizer's state
_GROW_AFTER_STEPS: Final = 2000


class LossScale:
    """Factor of the loss in fp16, so that small gradients do not vanish (Micikevicius et al. 2018).

    A power of two, so that dividing by it is exact: halved when gradients overflow, doubled after 2,000 finite steps.
    It stays on its device, so the host need not know how a step went before it begins the next one.
    torch.amp.GradScaler does not fit: it divides the gradients and looks for overflows itself, which under ZeRO is
    DeepSpeed's part, its scale has no lower bound, and the checkpoint's keys would change.

    Attributes:
        value: the factor, a 0-dim tensor
        steps_since: steps with finite gradients since it changed, a 0-dim tensor
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.value = torch.tensor(_INITIAL, device=device)
        self.steps_since = torch.zeros((), device=device)

    def update(self, finite: Tensor) -> None:
        """Adapt the scale after a step whose gradients were finite, or not."""
        steps = torch.where(finite, self.steps_since + 1, 0)
        grows = steps == _GROW_AFTER_STEPS
        self.value = torch.where(finite, torch.where(grows, self.value * 2, self.value), (self.value / 2).clamp(min=1))
        self.steps_since = steps.masked_fill(grows, 0)

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors, `loss_scale/value` and `loss_scale/steps_since`."""
        return {f"{_KEY}/value": self.value, f"{_KEY}/steps_since": self.steps_since}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`, if `state` contains it."""
        if f"{_KEY}/value" in state:
            self.value = state[f"{_KEY}/value"].to(self.value)
            self.steps_since = state[f"{_KEY}/steps_since"].to(self.steps_since)
