import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.errors import UserError
from ssl_core.engines import Engine, EngineConfig, EngineSetup, build_engine
from ssl_core.loss.agreement import agree
from ssl_core.loss.ntxent import LossConfig
from ssl_core.model.optimizer import OptimConfig
from tests.support.small_encoder import small_encoder, small_encoder_in_double, two_views, views_of

CPU = torch.device("cpu")


def setup(parts: int) -> EngineSetup:
    return EngineSetup(EngineConfig(), OptimConfig(), LossConfig(), "fp32", CPU, micro_batches=parts)


def engine(parts: int) -> Engine:
    return build_engine(setup(parts), small_encoder())


def test_projects_every_part_to_the_same_bits_in_both_passes() -> None:
    cached = engine(parts=3)
    projections: list[Tensor] = []
    cached.module.register_forward_hook(lambda module, images, z: projections.append(z.detach()))
    cached.backward(two_views(8))
    assert [len(z) for z in projections] == [6, 6, 4, 6, 6]  # both views of 3, 3, 2 samples; the last part once
    assert torch.equal(projections[0], projections[3])
    assert torch.equal(projections[1], projections[4])


def test_running_statistics_see_every_part_once() -> None:
    cached, plain = engine(parts=3), small_encoder().to(memory_format=torch.channels_last)
    images = two_views(9)
    cached.backward(images)
    plain.train()
    for part in range(3):
        with torch.no_grad():
            plain(torch.cat([view[part::3] for view in images]).to(memory_format=torch.channels_last))
    state = cached.model_state()
    for name, buffer in plain.named_buffers():
        assert torch.equal(state[name], buffer), name


def test_running_statistics_are_those_of_large_views_alone() -> None:
    for parts in (1, 3):
        both, large = engine(parts), engine(parts)
        both.backward(views_of(9, small=2))
        large.backward(two_views(9))
        state = large.model_state()
        for name, buffer in both.encoder.named_buffers():
            assert torch.equal(state[name], buffer), name


def test_takes_fewer_parts_when_there_are_fewer_samples() -> None:
    three, many = engine(parts=3), engine(parts=100)
    for cached in (three, many):
        cached.backward(two_views(3))
    gradients = many.gradients()
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in three.gradients().items())


@pytest.mark.parametrize("parts", [1, 3])
def test_samples_that_do_not_count_change_no_number_and_no_shape(parts: int) -> None:
    """Every third part has one that does not count, and one part of three has none that does."""
    places = torch.tensor([0, 1, 3, 4, 6, 7])
    masked, plain = (build_engine(setup(parts=parts), small_encoder_in_double()) for _ in range(2))
    shapes: list[torch.Size] = []
    masked.encoder.backbone.register_forward_pre_hook(lambda _, images: shapes.append(images[0].shape))
    views = [torch.full((9, *view.shape[1:]), 7.0).index_copy(0, places, view) for view in views_of(6, small=1)]
    counted = torch.zeros(9, dtype=torch.bool).index_fill(0, places, True)
    loss = masked.backward(views, agree(6, LossConfig()), counted).loss
    assert {shape[0] for shape in shapes} == {18 // parts, 9 // parts}
    if parts == 1:
        expected, gradients = plain.backward(views_of(6, small=1)).loss, masked.gradients()
        assert torch.isclose(loss, expected, rtol=1e-6)
        for name, gradient in plain.gradients().items():
            assert (gradients[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
        for name, buffer in plain.encoder.named_buffers():
            torch.testing.assert_close(masked.model_state()[name], buffer, rtol=1e-6, atol=1e-7)
    assert loss.isfinite()
    assert masked.update(1e-3)


@pytest.mark.parametrize("samples", [0, 1])
def test_refuses_a_batch_of_fewer_than_two_samples(samples: int) -> None:
    with pytest.raises(UserError, match=f"has {samples} readable samples"):
        engine(parts=2).backward(two_views(samples))


def most_activation_bytes(cached: Engine, images: list[Tensor]) -> int:
    """The peak of the bytes that autograd keeps for the backward pass during a step."""
    held, most = 0, 0
    alive: dict[int, int] = {}

    def release(storage: int) -> None:
        nonlocal held
        held -= alive.pop(storage)

    def pack(tensor: Tensor) -> Any:
        nonlocal held, most
        storage = tensor.untyped_storage()
        if isinstance(tensor, torch.nn.Parameter) or storage.data_ptr() in alive:
            return tensor
        alive[storage.data_ptr()] = storage.nbytes()
        held += storage.nbytes()
        most = max(most, held)
        kept = tensor.detach()  # autograd drops what `pack` returns together with the graph
        weakref.finalize(kept, release, storage.data_ptr())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        cached.backward(images)
    return most


def test_has_the_activations_of_one_part_at_a_time() -> None:
    images = two_views(16)
    whole, quarter = (most_activation_bytes(engine(parts), images) for parts in (1, 4))
    assert quarter < 0.27 * whole
