"""The scale of the loss in fp16."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_KEY: Final = "loss_scale"  # takes the position of a parameter's name in the optimizer's state
_GROW_AFTER_STEPS: Final = 2000


@dataclass
class LossScale:
    """Factor of the loss in fp16, so that small gradients do not vanish (Micikevicius et al. 2018).

    A power of two, so that dividing by it is exact: halved when gradients overflow, doubled after 2,000 finite steps.
    torch.amp.GradScaler does not fit: it divides the gradients and looks for overflows itself, which under ZeRO is
    DeepSpeed's part, its scale has no lower bound, and the checkpoint's keys would change.
    """

    value: float = 1.0
    steps_since: int = 0

    def update(self, *, finite: bool) -> None:
        """Adapt the scale after a step whose gradients were finite, or not."""
        self.steps_since = self.steps_since + 1 if finite else 0
        if not finite:
            self.value = max(1.0, self.value / 2)
        elif self.steps_since == _GROW_AFTER_STEPS:
            self.value, self.steps_since = self.value * 2, 0

    def state(self) -> dict[str, Tensor]:
        """Return the state as tensors, `loss_scale/value` and `loss_scale/steps_since`."""
        values = {"value": self.value, "steps_since": float(self.steps_since)}
        return {f"{_KEY}/{name}": torch.tensor(value) for name, value in values.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`, if `state` contains it."""
        if f"{_KEY}/value" in state:
            self.value = state[f"{_KEY}/value"].item()
            self.steps_since = int(state[f"{_KEY}/steps_since"].item())
