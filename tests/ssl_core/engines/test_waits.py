"""Where the host of a GPU waits for it in a step: at operations whose result or shape depends on values."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core.engines import EngineConfig, EngineSetup, build_engine
from ssl_core.loss.ntxent import Identities, LossConfig
from ssl_core.model.optimizer import OptimConfig
from tests.support.small_encoder import small_encoder, two_views

WAITING = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITING or (name == "index" and any(is_mask(index) for index in args[1])):
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


def is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def test_a_step_waits_only_for_related_samples_and_for_the_norm_of_the_gradient() -> None:
    """One more wait, for the check of all ranks' inputs, is a `tolist`, which is no operation of a CPU tensor.

    The sums over pairs are those of `dense`: the kernels, which replace them on a GPU, wait only where there are keys.
    """
    setup = EngineSetup(EngineConfig(), OptimConfig(), LossConfig(executor="dense"), "fp32", torch.device("cpu"))
    engine = build_engine(setup, small_encoder())
    identities = Identities(*(torch.arange(8) for _ in range(3)))
    for mode in (nullcontext(), waits := Waits()):
        with mode:  # the first step also lays out the rows
            engine.backward(two_views(8), identities)
            engine.update(1e-3)
    assert waits.count == {"_unique2": 1, "_local_scalar_dense": 1}
