import pytest

from ssl_core.pretraining.collapse import CollapseAlarm

HEALTHY = {
    "health/projection_deviation": 0.8,
    "health/projection_rankme": 20.0,
    "health/positive_similarity": 0.7,
    "health/negative_similarity": 0.1,
}


@pytest.mark.parametrize(
    ("tag", "value", "reason"),
    [
        ("health/projection_deviation", 0.01, "their deviation is 0.010, below 0.1"),
        ("health/projection_rankme", 1.2, "their effective rank is 1.20, below 2"),
        ("health/negative_similarity", 0.69, "positives are only 0.010 more similar than negatives"),
    ],
)
def test_begins_with_the_third_sick_line_in_a_row_and_warns_once(tag: str, value: float, reason: str) -> None:
    alarm, sick = CollapseAlarm(0), HEALTHY | {tag: value}
    lines = [sick, sick, HEALTHY, sick, {}, sick, sick, sick, HEALTHY]
    warnings, states = [], []
    for step, line in enumerate(lines, start=10):
        warnings.append(alarm.look_at(step, 1.5, line))
        states.append(alarm.is_on)
    assert states == [False] * 6 + [True, True, False]
    assert [bool(warning) for warning in warnings] == [False] * 6 + [True, False, False]
    assert reason in warnings[6]
    assert "up to step 16; start again with a lower optim.learning_rate" in warnings[6]


def test_says_nothing_about_an_untrained_network() -> None:
    alarm = CollapseAlarm(warmup_steps=30)
    sick = dict.fromkeys(HEALTHY, 0.0)
    assert not any(alarm.look_at(step, step / 20, sick) for step in range(1, 30))
    assert not alarm.is_on
