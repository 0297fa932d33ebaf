"""Where the host of a GPU waits for it in a step: at operations whose result or shape depends on values."""

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssl_core.engines import EngineConfig, EngineSetup, build_engine
from ssl_core.engines.loss_scale import LossScale
from ssl_core.loss.agreement import agree
from ssl_core.loss.ntxent import Identities, LossConfig
from ssl_core.model.optimizer import OptimConfig
from tests.support.small_encoder import small_encoder, views_of

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


CASES = {
    "plain": (EngineConfig(), OptimConfig(), 1, 0),
    "every option": (EngineConfig(max_gradient_norm=1e-3), OptimConfig("lars", 0.3), 2, 1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_host_waits_for_nothing_in_a_step_and_once_to_learn_whether_it_was_skipped(case: str) -> None:
    """The sums over pairs are those of `dense`, which the kernels replace on a GPU; some samples are related."""
    config, optim, parts, small = CASES[case]
    loss = LossConfig(executor="dense")
    setup = EngineSetup(config, optim, loss, "fp32", torch.device("cpu"), micro_batches=parts)
    engine = build_engine(setup, small_encoder())
    agreed = agree(8, loss, Identities(*(torch.arange(8) // 2 for _ in range(3))))
    assert agreed.keys is not None
    for mode in (nullcontext(), waits := Waits()):
        with mode:  # the first step also lays out the rows
            engine.backward(views_of(8, small=small), agreed)
            update = engine.update(1e-3)
    assert not waits.count
    with waits:
        assert update
    assert waits.count == {"_local_scalar_dense": 1}


def test_the_loss_scale_follows_the_gradients_without_a_wait() -> None:
    scale, waits = LossScale(), Waits()
    scale.load({"loss_scale/value": torch.tensor(4.0), "loss_scale/steps_since": torch.tensor(1998.0)})
    seen = []
    for finite in (True, True, False, False, False, False, False, True):
        with waits:
            scale.update(torch.tensor(finite))
        seen.append((scale.value.item(), scale.steps_since.item()))
    assert seen == [(4, 1999), (8, 0), (4, 0), (2, 0), (1, 0), (1, 0), (1, 0), (1, 1)]
    assert not waits.count
