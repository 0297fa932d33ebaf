"""What an update of the weights changes, decided on the device: the host learns it when it asks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_core.loss.agreement import why_skipped


@dataclass(frozen=True)
class StepUpdate:
    """An update that a GPU may not have reached yet. Its truth is whether it changed the weights; asking waits.

    Attributes:
        learned: whether loss and gradient were finite, a 0-dim tensor of bool, equal on all ranks
        projections: (views, n, d) of this rank in this step
    """

    learned: Tensor
    projections: Tensor

    def __bool__(self) -> bool:
        return bool(self.learned)

    def why_not(self) -> str:
        """Say what was not finite. Collective.

        Raises:
            RunFailed: on all ranks, if a projection is zero
        """
        return why_skipped(self.projections)


class KeptTensors:
    """Tensors whose values can be taken back, without a wait for the device and in a few launches for hundreds."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        dtypes = {tensor.dtype: None for tensor in tensors}
        self._by_type = [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in dtypes]
        self._kept: list[Tensor] = []  # of each type, all values one after the other

    def keep(self) -> None:
        """Keep the present values instead of earlier ones."""
        self._kept = [_flat(tensors) for tensors in self._by_type]

    def restore_unless(self, condition: Tensor) -> None:
        """Take the kept values back unless the 0-dim `condition` is true."""
        for tensors, kept in zip(self._by_type, self._kept, strict=True):
            chosen = torch.where(condition, _flat(tensors), kept)
            parts = torch.split(chosen, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
