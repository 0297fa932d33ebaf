import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from infra.errors import UserError
from ssl_core.model.lars import LARS
from ssl_core.model.optimizer import OptimConfig, base_rate, build_optimizer, learning_rate_at

Array = npt.NDArray[np.float64]


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5)).double()


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, rates: list[float]) -> dict[str, Array]:
    for step, rate in enumerate(rates):
        give_gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def lars_by_hand(weight: Array, gradients: list[Array], rates: list[float], decay: float, adapted: bool) -> Array:
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        decayed = gradient + decay * weight
        sizes = math.sqrt((weight**2).sum()), math.sqrt((decayed**2).sum())
        ratio = 0.001 * sizes[0] / sizes[1] if adapted and min(sizes) > 0 else 1.0
        velocity = 0.9 * velocity + rate * ratio * decayed
        weight = weight - velocity
    return weight


def test_constant_schedule_is_the_papers() -> None:
    assert {learning_rate_at(OptimConfig(), step, 100, 128) for step in range(100)} == {5e-4}


def test_cosine_rises_linearly_then_falls_to_nearly_zero() -> None:
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate_at(config, step, 110, 256) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 100)))


def test_scaling_states_the_rate_for_a_batch_of_256() -> None:
    config = OptimConfig(learning_rate=0.3)
    linear, root = replace(config, batch_scaling="linear"), replace(config, batch_scaling="sqrt")
    assert base_rate(config, 4096) == 0.3
    assert base_rate(linear, 4096) == pytest.approx(4.8)  # SimCLR's default
    assert base_rate(root, 4096) == pytest.approx(1.2)
    assert base_rate(linear, 256) == base_rate(root, 256) == 0.3
    assert learning_rate_at(linear, 7, 10, 512) == pytest.approx(0.6)


@given(
    total_steps=st.integers(2, 300),
    warmup_share=st.floats(0, 0.99),
    schedule=st.sampled_from(["constant", "cosine"]),
    global_batch=st.integers(2, 10_000),
)
def test_no_rate_of_a_run_is_beyond_the_base_rate_or_zero(
    total_steps: int, warmup_share: float, schedule: str, global_batch: int
) -> None:
    config = OptimConfig(batch_scaling="sqrt", schedule=schedule, warmup_steps=int(warmup_share * total_steps))  # type: ignore[arg-type]
    rates = [learning_rate_at(config, step, total_steps, global_batch) for step in range(total_steps)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(base_rate(config, global_batch))


def test_warmup_beyond_the_run_is_refused() -> None:
    with pytest.raises(UserError, match=r"optim\.warmup_steps=200 must be below the 150 steps of the run; try 15"):
        learning_rate_at(OptimConfig(warmup_steps=200), 0, 150, 128)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("weight_decay", -1.0),
        ("weight_decay", math.nan),
        ("warmup_steps", -1),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"optim\.{name}={value} must"):
        OptimConfig(**{name: value})


def test_lars_with_the_rate_of_adam_is_refused_because_it_would_learn_nothing() -> None:
    with pytest.raises(UserError, match=r"optim\.learning_rate=0\.0005 is a rate for adam") as caught:
        OptimConfig("lars")
    assert "optim.batch_scaling=linear" in str(caught.value)
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    optimizer = build_optimizer(OptimConfig("lars", 0.01), nn.ParameterList([weight]))
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert 0.985 < float(weight.detach().mean()) < 0.995  # the rule's 0.01 % in a step, after the first few


def test_lars_equals_its_formula_in_float64() -> None:
    model, rates, decay = small_model(), [0.5, 1.0, 0.7, 0.1], 0.01
    start = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    gradients: dict[str, list[Array]] = {name: [] for name in start}
    for step in range(len(rates)):
        give_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradients[name].append(parameter.grad.numpy().copy())
    result = train(model, build_optimizer(OptimConfig("lars", 0.3, weight_decay=decay), model), rates)
    for name, weight in start.items():
        spared = weight.ndim == 1  # biases and norms
        expected = lars_by_hand(weight, gradients[name], rates, 0.0 if spared else decay, not spared)
        np.testing.assert_allclose(result[name], expected, rtol=1e-13, atol=0, err_msg=name)


def test_lars_takes_a_plain_step_where_a_norm_is_zero() -> None:
    weight, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    unused = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([weight, still, unused], lr=0.5)
    weight.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(still.detach(), torch.ones(2, 2))
    assert unused not in optimizer.state


def test_adamw_is_torchs_without_decay_of_biases_and_norms() -> None:
    model = small_model()
    twin = copy.deepcopy(model)
    weights = [parameter for name, parameter in twin.named_parameters() if name in ("0.weight", "3.weight")]
    others = [parameter for name, parameter in twin.named_parameters() if name not in ("0.weight", "3.weight")]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    expected = train(twin, torch.optim.AdamW(groups, lr=1e-3), [1e-3, 2e-3, 3e-3])
    result = train(model, build_optimizer(OptimConfig("adamw", weight_decay=0.1), model), [1e-3, 2e-3, 3e-3])
    for name, weight in result.items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-12, err_msg=name)


def test_adam_of_the_paper_is_torchs_over_all_parameters() -> None:
    model = small_model()
    twin = copy.deepcopy(model)
    expected = train(twin, torch.optim.Adam(twin.parameters(), weight_decay=0.1), [5e-4] * 3)
    result = train(model, build_optimizer(OptimConfig(weight_decay=0.1), model), [5e-4] * 3)
    for name, weight in result.items():
        np.testing.assert_allclose(weight, expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["adam", "adamw", "lars"])
def test_state_is_tensors_by_parameter_from_which_a_copy_continues_equally(name: str) -> None:
    config = OptimConfig(name, 0.3, weight_decay=0.01)  # type: ignore[arg-type]
    model = small_model()
    optimizer = build_optimizer(config, model)
    train(model, optimizer, [0.1, 0.1])
    twin = copy.deepcopy(model)
    other = build_optimizer(config, twin)
    for parameter, copied in zip(model.parameters(), twin.parameters(), strict=True):
        state = optimizer.state[parameter]
        assert state
        assert all(isinstance(value, torch.Tensor) for value in state.values())
        other.state[copied] = {kind: value.clone() for kind, value in state.items()}
    expected, result = train(model, optimizer, [0.2]), train(twin, other, [0.2])
    assert all(np.array_equal(weight, expected[parameter]) for parameter, weight in result.items())
