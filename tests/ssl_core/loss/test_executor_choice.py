"""`auto` must never choose kernels that do not run, and all ranks must choose alike."""

from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ssl_core.loss import executor_choice
from ssl_core.loss.config import LossConfig
from ssl_core.loss.executor_choice import loss_executor, why_kernels_fail
from tests.support.process_group import on_ranks

pytest.importorskip("triton", reason="Triton is not installed")


def chosen(rows: int, d: int = 128, temperature: float = 0.5) -> str:
    """Return the executor for rows on a GPU that is not there; a new temperature or d asks the kernels again."""
    with FakeTensorMode():
        all_rows = torch.empty(rows, d, device="cuda")
    executor = loss_executor(LossConfig(temperature), all_rows, keyed=False)
    return str(vars(executor)["__name__"]).removeprefix("ssl_core.loss.")


def test_kernels_that_do_not_run_are_not_chosen_and_one_warning_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert [chosen(1000), chosen(2000), chosen(200)] == ["tiled", "tiled", "dense"]
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: the kernels of loss.executor=triton do not run on rank 0 (")
    assert "all ranks compute the loss as with loss.executor=tiled" in warning


def test_gpus_older_than_the_kernels_are_not_made_to_compile_them_for_minutes() -> None:
    with mock.patch.object(torch.cuda, "get_device_capability", lambda _: (7, 5)):
        assert why_kernels_fail(torch.device("cuda"), 128, False, 0.5) == "they need compute capability 8.0"


def test_the_reason_is_one_line_where_triton_has_no_driver() -> None:
    for keyed in (False, True):
        reason = why_kernels_fail(torch.device("cpu"), 128, keyed, 0.5)
        assert reason is not None
        assert "\n" not in reason


def choices(rank: int, world: int) -> list[str]:
    """Return the executors that this rank chooses if the kernels run on all ranks, and if they fail on rank 1."""
    with mock.patch.object(executor_choice, "why_kernels_fail", side_effect=[None, "no C compiler" if rank else None]):
        return [chosen(1000, temperature=temperature) for temperature in (0.5, 0.6)]


def test_all_ranks_use_the_kernels_or_none_does() -> None:
    assert on_ranks(2, choices) == [["kernels", "tiled"]] * 2
