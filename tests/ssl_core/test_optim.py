import math

import pytest

from infra.errors import UserError
from ssl_core.optim import OptimConfig, learning_rate_at


def test_constant_schedule_is_the_papers() -> None:
    assert {learning_rate_at(OptimConfig(), step, 100) for step in range(100)} == {5e-4}


def test_cosine_rises_linearly_then_falls_to_nearly_zero() -> None:
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate_at(config, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * step for step in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 100)))


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 0.0), ("weight_decay", -1.0), ("warmup_steps", -1)])
def test_a_value_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"optim\.{name}={value} must"):
        OptimConfig(**{name: value})
