"""What the loss asks of an executor: sums over the pairs of this rank's rows with the rows of all ranks.

All executors (dense, tiled, triton) are modules with the two functions of `Executor`. With unit rows z,
s_ij = z_i . z_j / tau, and for row i

    own(i)    the other view of the same sample, which is always a positive of i
    P(i)      all positives: every j != i with positive_j == positive_i
    kept(i)   all j != i, without those with group_j == group_i that are not in P(i)

The own view never enters an executor's sums: near convergence its weight is the small difference of numbers near 1, so
`ssl_core.loss.ntxent` adds it in float64, for n pairs instead of n N. What an executor rounds (bf16 operands, fp32
sums) then is relative to the remainder, and stays relative to it however small the loss is.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Keys(NamedTuple):
    """Which pairs of the N global rows are positives and which are left out; both relations are symmetric.

    group, positive: (N,) int64 of any values. Rows that share a positive share a group too, and a row shares both with
    its own view. Executors take None in place of keys for the plain loss: there the own view is the only positive, and
    only the diagonal is left out.
    """

    group: Tensor
    positive: Tensor


class RowStats(NamedTuple):
    """The sums of the forward pass for n rows.

    others: (n,) float64, log of the sum of exp(s_ij) over the kept j other than own(i); -inf where there is none.
    at_positives: (n,) float64, sum of s_ip over P(i) without own(i); 0 without keys.
    positives: (n,) float64, |P(i)|, own(i) included; 1 without keys.
    above: (n,) int64, how many kept j other than own(i) have s_ij > s_i,own(i).
    """

    others: Tensor
    at_positives: Tensor
    positives: Tensor
    above: Tensor


class Executor(Protocol):
    """The pair sums of the loss, forward and backward.

    rows: (n, d) unit rows in fp32 or fp64, those from `start` on of `everyone` (N, d); own: (n,) int64, their second
    views' places in `everyone`. All tensors are contiguous and on one device. n may be 0; N is at least 4.
    """

    def forward(
        self, rows: Tensor, everyone: Tensor, keys: Keys | None, start: int, own: Tensor, temperature: float
    ) -> RowStats:
        """Return what the loss needs of each row."""

    def backward(
        self,
        rows: Tensor,
        everyone: Tensor,
        keys: Keys | None,
        start: int,
        own: Tensor,
        temperature: float,
        lse: Tensor,
        positives: Tensor,
    ) -> Tensor:
        """Return the pull of all pairs but (i, own(i)) on the rows, (n, d) in their dtype.

            sum over kept j != own(i) of (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j
          - sum over p in P(i) without own(i) of (1/|P(i)| + 1/|P(p)|) z_p

        lse: (N,) float64, log of the sum of exp(s_ij) over all kept j, own(i) included, for all global rows.
        positives: (N,) float64, |P(j)| of all global rows.
        """


def own_similarities(rows: Tensor, everyone: Tensor, own: Tensor, temperature: float) -> Tensor:
    """Return s_i,own(i), (n,) float64: 1/tau minus half the squared distance, exact also where the views coincide."""
    return (1 - (rows - everyone[own]).double().square().sum(1) / 2) / temperature
