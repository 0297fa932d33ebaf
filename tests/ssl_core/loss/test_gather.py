import pytest
import torch
from torch import Tensor

from ssl_core.loss.gather import gather_equal, gather_rows
from tests.support.process_group import on_ranks

SHARES = [[2, 2, 2], [3, 0, 1], [0, 0, 4]]


def gathers(rank: int, world: int) -> list[Tensor]:
    """Each share's rows, filled with their rank and position, and values that all ranks have."""
    result = []
    for counts in SHARES:
        rows = torch.tensor([[rank, position] for position in range(counts[rank])], dtype=torch.int64).reshape(-1, 2)
        result.append(gather_rows(rows, counts))
    return [*result, gather_equal(torch.tensor([[rank, -rank]]))]


def test_rows_come_in_rank_order_whatever_each_rank_holds() -> None:
    expected = [
        torch.tensor([[rank, position] for rank, count in enumerate(counts) for position in range(count)])
        for counts in SHARES
    ]
    for *result, equal in on_ranks(3, gathers):
        assert all(torch.equal(rows, reference) for rows, reference in zip(result, expected, strict=True))
        assert torch.equal(equal, torch.tensor([[[0, 0]], [[1, -1]], [[2, -2]]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_one_process_has_its_partner_rows_alone(dtype: torch.dtype) -> None:
    rows = torch.arange(6).reshape(3, 2).to(dtype)
    assert torch.equal(gather_rows(rows, [3]), rows)
    assert torch.equal(gather_equal(rows), rows[None])
