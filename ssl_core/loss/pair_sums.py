"""The sums over pairs of rows that the loss needs, and the interface of the executors that compute them.

The pairs are this rank's rows with the rows of all ranks. All executors (dense, tiled, triton) are modules with the two
functions of `LossExecutor`. With unit rows z, s_ij = z_i . z_j / tau, and for row i

    partner(i)  the other view of the same sample, which is always a positive of i
    P(i)        all positives: every j != i with positive_j == positive_i
    kept(i)     all j != i, without those with group_j == group_i that are not in P(i); in the decoupled loss, also
                without P(i)

The partner never enters an executor's sums: near convergence its weight is the small difference of numbers near 1, so
`ssl_core.loss.ntxent` adds it in float64, for n pairs instead of n N. The rounding of an executor (bf16 operands, fp32
sums) is then relative to the remainder, however small the loss is.
"""

from typing import Final, NamedTuple, Protocol

from torch import Tensor

# In place of the lse of a row that keeps none: exp(s - LARGE) is 0, and fp32 has this number.
LARGE: Final = 2.0**20


class Keys(NamedTuple):
    """Keys that define which pairs of the N global rows are positive and which are left out; both are symmetric.

    Rows that share a positive also share a group, and a row shares both with its partner. Executors accept None instead
    of keys for the plain loss: there the partner is the only positive, and only the diagonal is left out.

    Attributes:
        group: (N,) int64, numbers below N
        positive: (N,) int64, likewise
    """

    group: Tensor
    positive: Tensor


class RowPairs(NamedTuple):
    """The pairs of this rank's rows with the rows of all ranks; all tensors are contiguous and on one device.

    Attributes:
        rows: (n, d) unit rows in fp32 or fp64, those from `start` on of `all_rows`; n may be 0
        all_rows: (N, d) the rows of all ranks; N is at least 4
        keys: positives and excluded pairs, None for the plain loss
        start: position of the first row in `all_rows`
        partner: (n,) int64, position of each row's partner in `all_rows`
        temperature: tau
        decoupled: whether positives are not kept
    """

    rows: Tensor
    all_rows: Tensor
    keys: Keys | None
    start: int
    partner: Tensor
    temperature: float
    decoupled: bool = False

    @property
    def here(self) -> slice:
        """The positions of the rows in `all_rows`."""
        return slice(self.start, self.start + len(self.rows))

    @property
    def partner_similarities(self) -> Tensor:
        """s_i,partner(i), (n,) float64: 1/tau minus half the squared distance, exact even for equal views."""
        difference = (self.rows - self.all_rows[self.partner]).double()
        return (1 - difference.square().sum(1) / 2) / self.temperature


class RowStats(NamedTuple):
    """The sums of the forward pass for n rows.

    Attributes:
        others: (n,) float64, log of the sum of exp(s_ij) over the kept j other than partner(i); -inf if there are none
        at_positives: (n,) float64, sum of s_ip over P(i) without partner(i); 0 without keys
        positives: (n,) float64, |P(i)|, including partner(i); 1 without keys
        above: (n,) int64, number of kept j other than partner(i) with s_ij > s_i,partner(i)
    """

    others: Tensor
    at_positives: Tensor
    positives: Tensor
    above: Tensor


class LossExecutor(Protocol):
    """The pair sums of the loss, forward and backward."""

    def forward(self, pairs: RowPairs) -> RowStats:
        """Return the sums of each row."""

    def backward(self, pairs: RowPairs, lse: Tensor, positives: Tensor) -> Tensor:
        """Return the gradient of all pairs except (i, partner(i)) with respect to the rows, (n, d) in their dtype.

        Up to a factor 1 / (N tau), it is

            sum over kept j != partner(i) of (exp(s_ij - lse_i) + exp(s_ij - lse_j)) z_j
          - sum over p in P(i) without partner(i) of (1/|P(i)| + 1/|P(p)|) z_p

        Args:
            pairs: the rows
            lse: (N,) float64, log of the sum of exp(s_ij) over all kept j of all global rows, including partner(i)
                unless decoupled
            positives: (N,) float64, |P(j)| of all global rows
        """
