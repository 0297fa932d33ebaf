import time
from unittest import mock

import pytest
from ranks import on_ranks

from infra.errors import UserError
from infra.processes import Ranks, clock_skew_s, ranks_from_environment, require_world, sum_over_ranks


def sums(rank: int, world: int) -> list[int]:
    return sum_over_ranks(rank, 1)


def skew_with_one_clock_ahead(rank: int, world: int, ahead_s: float) -> float:
    now = time.time
    with mock.patch("time.time", lambda: now() + ahead_s * (rank == 1)):
        return clock_skew_s()


def test_counts_are_summed_over_all_ranks_and_alone() -> None:
    assert on_ranks(3, sums) == [[3, 3]] * 3
    assert sum_over_ranks(4, 5) == [4, 5]


def test_a_clock_that_is_ahead_shows_on_all_ranks() -> None:
    found = on_ranks(2, skew_with_one_clock_ahead, 30.0)
    assert found[0] == found[1]
    assert 29 < found[0] < 40
    assert clock_skew_s() == 0


def test_another_number_of_processes_than_promised_is_refused() -> None:
    require_world(None, 3)
    require_world(4, 4)
    with pytest.raises(UserError, match=r"train.world_size=4 .* but 2 came"):
        require_world(4, 2)


@pytest.mark.parametrize("local_world", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_ranks_are_those_that_torchrun_or_the_deepspeed_launcher_set(
    monkeypatch: pytest.MonkeyPatch, local_world: str
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert ranks_from_environment() == Ranks(0, 1, 0, 1)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", local_world: "4"}.items():
        monkeypatch.setenv(name, value)
    assert ranks_from_environment() == Ranks(5, 8, 1, 4)
    monkeypatch.setenv(local_world, "four")
    with pytest.raises(UserError, match="must be integers"):
        ranks_from_environment()
