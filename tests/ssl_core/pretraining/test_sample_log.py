import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from infra.ranks.processes import Ranks
from ssl_core.pretraining.sample_log import SampleLog, read_sample_log, truncate_sample_log

GLOBAL_BATCH = 12


def consumed_in(step: int) -> tuple[np.ndarray, ...]:
    """Return epochs, samples, valid and second samples of a step by an arbitrary rule."""
    numbers = np.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
    samples = (numbers + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return numbers // 30, samples, numbers % 7 != 3, samples + (numbers % 25 > 12).astype(np.uint64)


def log_steps(run: Path, steps: Sequence[int], world: int, rank: int) -> None:
    share = slice(rank * GLOBAL_BATCH // world, (rank + 1) * GLOBAL_BATCH // world)
    with SampleLog(run, Ranks(rank, world)) as log:
        for step in steps:
            log.write(step, *(values[share] for values in consumed_in(step)))


def start(run: Path, first_step: int, end: int, world: int) -> None:
    """One start of a run, of `world` ranks, from `first_step` to before `end`."""
    truncate_sample_log(run, first_step)
    for rank in range(world):
        log_steps(run, range(first_step, end), world, rank)


def require_steps(run: Path, count: int) -> None:
    steps = read_sample_log(run)
    assert [step.step for step in steps] == list(range(count))
    for step in steps:
        for ours, theirs in zip(step[1:], consumed_in(step.step), strict=True):
            assert ours.dtype == theirs.dtype
            assert ours.tolist() == theirs.tolist()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(starts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6), st.sampled_from([1, 2, 3, 4, 12])), min_size=1))
def test_log_reads_as_one_run_whatever_its_starts_were(
    starts: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each start resumes before the end of the previous one, on another number of ranks."""
    run, end = tmp_path_factory.mktemp("run"), 0
    for back, count, world in starts:
        first_step = max(0, end - back)
        end = first_step + count
        start(run, first_step, end, world)
    require_steps(run, end)


def test_line_cut_by_a_power_cut_is_dropped_on_reading_and_on_restart(tmp_path: Path) -> None:
    start(tmp_path, 0, 5, world=2)
    path = tmp_path / "samples" / "rank-1.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    require_steps(tmp_path, 4)
    truncate_sample_log(tmp_path, 4)
    assert path.read_text().endswith("}\n")
    start(tmp_path, 4, 8, world=4)
    require_steps(tmp_path, 8)


def test_last_step_that_not_all_ranks_wrote_is_left_out(tmp_path: Path) -> None:
    for rank, steps in enumerate([4, 3, 4]):
        log_steps(tmp_path, range(steps), 3, rank)
    require_steps(tmp_path, 3)


def test_step_that_some_rank_lacks_is_named(tmp_path: Path) -> None:
    log_steps(tmp_path, [0, 1, 2, 3], 2, 0)
    log_steps(tmp_path, [0, 2, 3], 2, 1)
    with pytest.raises(UserError, match="samples lacks step 1 of some rank"):
        read_sample_log(tmp_path)


def test_step_that_no_rank_has_is_named(tmp_path: Path) -> None:
    start(tmp_path, 0, 2, world=1)
    log_steps(tmp_path, [3], 1, 0)
    with pytest.raises(UserError, match="lacks step 2 of some rank"):
        read_sample_log(tmp_path)


def test_file_of_a_rank_that_is_gone_is_noticed(tmp_path: Path) -> None:
    start(tmp_path, 0, 3, world=3)
    (tmp_path / "samples" / "rank-2.jsonl").unlink()
    with pytest.raises(UserError, match="lacks step 0 of some rank"):
        read_sample_log(tmp_path)


def test_step_that_occurs_twice_is_named(tmp_path: Path) -> None:
    start(tmp_path, 0, 3, world=2)
    log_steps(tmp_path, [2], 2, 1)
    with pytest.raises(UserError, match=r"rank-1\.jsonl has step 2 twice"):
        read_sample_log(tmp_path)


def test_restart_without_truncation_at_another_world_size_is_noticed(tmp_path: Path) -> None:
    start(tmp_path, 0, 3, world=2)
    log_steps(tmp_path, [2, 3], 4, 2)
    with pytest.raises(UserError, match="lacks step 2 of some rank"):
        read_sample_log(tmp_path)


def test_damaged_line_is_named_with_its_file_and_costs_a_resumed_run_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, 0, 3, world=1)
    path = tmp_path / "samples" / "rank-0.jsonl"
    path.write_text(path.read_text().replace('"step":1', '"step":x'))
    message = r"rank-0\.jsonl is damaged in line 2 \(.*\); the log of this run is not reliable"
    with pytest.raises(UserError, match=message):
        read_sample_log(tmp_path)
    truncate_sample_log(tmp_path, 3)
    assert re.search(rf"^warning: .*{message}; rank-0\.jsonl is cut there$", capsys.readouterr().err)
    assert len(path.read_text().splitlines()) == 1
    log_steps(tmp_path, [3], 1, 0)
    with pytest.raises(UserError, match="lacks step 1 of some rank"):
        read_sample_log(tmp_path)


def test_run_without_a_log_has_no_steps_and_nothing_to_truncate(tmp_path: Path) -> None:
    truncate_sample_log(tmp_path, 0)
    assert read_sample_log(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_lines_are_json_with_identities_in_hexadecimal(tmp_path: Path) -> None:
    with SampleLog(tmp_path, Ranks(1, 2)) as log:
        samples = np.array([2**64 - 1, 1], np.uint64)
        log.write(7, np.array([3, 4]), samples, np.array([True, False]))
        line = json.loads((tmp_path / "samples" / "rank-1.jsonl").read_text())  # on the disk before the log is closed
    assert line == {"step": 7, "world": 2, "epochs": [3, 4], "samples": ["f" * 16, "0" * 15 + "1"], "masked": [1]}


def test_line_names_the_siblings_that_second_views_show_by_their_position(tmp_path: Path) -> None:
    with SampleLog(tmp_path, Ranks(0, 1)) as log:
        samples = np.array([16, 17, 18], np.uint64)
        log.write(0, np.zeros(3, np.int64), samples, np.ones(3, np.bool_), np.array([16, 255, 18], np.uint64))
    line = json.loads((tmp_path / "samples" / "rank-0.jsonl").read_text())
    assert line["siblings"] == {"1": "00000000000000ff"}
    assert read_sample_log(tmp_path)[0].second_samples.tolist() == [16, 255, 18]
