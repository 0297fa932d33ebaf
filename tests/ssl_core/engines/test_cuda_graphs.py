"""CUDA graphs: what they rest on, which needs no GPU, and that they compute the same, which needs one."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ssl_core.engines import Engine, EngineConfig, EngineSetup, build_engine
from ssl_core.loss.agreement import agree
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.optimizer import OptimConfig
from tests.support.small_encoder import small_encoder, views_of

SAMPLES = 8


def build(config: EngineConfig, device: str = "cpu") -> Engine:
    setup = EngineSetup(config, OptimConfig(), LossConfig(), "fp32", torch.device(device))
    return build_engine(setup, small_encoder())


def test_nothing_that_the_backbone_returns_outlives_its_step() -> None:
    """A graph writes to the same memory at each replay, so nothing of an earlier one may be in use."""
    engine = build(EngineConfig())
    returned: list[Any] = []

    def note(tensor: Tensor | None) -> None:
        assert tensor is not None
        returned.append(StorageWeakRef(tensor.untyped_storage()))  # type: ignore[no-untyped-call]

    engine.encoder.backbone.register_forward_hook(lambda layer, images, features: note(features))
    parameters = list(engine.encoder.backbone.parameters())
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(lambda parameter: note(parameter.grad))  # type: ignore[no-untyped-call]
    report, update = engine.backward(views_of(SAMPLES, small=1)), engine.update(1e-3)
    assert len(returned) == 2 + len(parameters)  # the features of both sizes, and the gradients
    assert all(memory.expired() for memory in returned)
    assert update  # the loop keeps this and the report until it has queued the next step
    assert report.loss.isfinite()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
def test_graphs_compute_what_the_kernels_do_one_by_one() -> None:
    losses: list[list[float]] = []
    for config in (EngineConfig(), EngineConfig(compile=True, cuda_graphs=True)):
        engine = build(config, "cuda")
        losses.append([])
        for step in range(6):  # recorded in the second, replayed from the third on
            views = [view.cuda() for view in views_of(SAMPLES, small=1, seed=step)]
            counted = torch.arange(SAMPLES) != step
            report = engine.backward(views, agree(SAMPLES - 1, LossConfig()), counted)
            assert engine.update(1e-3)
            losses[-1].append(report.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
