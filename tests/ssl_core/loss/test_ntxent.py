from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from infra.errors import RunFailed, UserError
from ssl_core.loss.agreement import why_skipped
from ssl_core.loss.config import ExecutorName, SamePatient
from ssl_core.loss.ntxent import Identities, LossConfig, LossReport, dense_nt_xent, nt_xent
from tests.support.process_group import on_ranks

SAME_PATIENT: list[SamePatient] = ["negative", "masked", "positive"]
EXECUTORS: list[ExecutorName] = ["dense", "tiled"]
SHARES = [3, 6, 0, 1, 2]  # samples of each of five ranks, 12 in total


def projections(samples: int, size: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    return first, first + spread * torch.randn(samples, size, generator=generator, dtype=torch.float64)


def identities(samples: int, seed: int) -> Identities:
    """Some samples occur twice, some patients have several images, in one study or in two."""
    draw = torch.Generator().manual_seed(seed)
    sample = torch.randint(0, 2 * samples, (samples,), generator=draw)
    patient = sample % max(1, samples // 2)
    return Identities(sample, patient, patient * 2 + sample // max(1, samples // 2) % 2)


def keys(ids: Identities, same_patient: str) -> tuple[Tensor, Tensor | None]:
    """The oracle's group and positive, both for 2n rows."""
    group = ids.instance if same_patient == "negative" else ids.patient
    return group.repeat(2), ids.study.repeat(2) if same_patient == "positive" else None


def gradients(loss: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    first, second = first.clone().requires_grad_(), second.clone().requires_grad_()
    value = loss(first, second)
    return value.detach(), torch.stack(torch.autograd.grad(value, (first, second)))


def test_equals_equation_4_worked_by_hand() -> None:
    first, second = projections(3, 4, seed=1)
    z = [row / row.norm() for row in [*first, *second]]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        positive = (i + 3) % 6
        others = torch.stack([torch.exp(z[i] @ z[k] / 0.5) for k in range(6) if k != i]).sum()
        total = total - torch.log(torch.exp(z[i] @ z[positive] / 0.5) / others)
    assert torch.isclose(dense_nt_xent(first, second, 0.5), total / 6, rtol=1e-12)
    assert torch.isclose(nt_xent(first, second, LossConfig(0.5)).loss, total / 6, rtol=1e-12)


def test_equals_the_supervised_contrastive_loss_worked_by_hand_when_studies_are_positives() -> None:
    first, second = projections(4, 5, seed=2)
    patient, study = [7, 7, 7, 8], [1, 1, 2, 3]
    z = [row / row.norm() for row in [*first, *second]]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(8):
        positives = [k for k in range(8) if k != i and study[k % 4] == study[i % 4]]
        kept = [k for k in range(8) if k in positives or patient[k % 4] != patient[i % 4]]
        others = torch.stack([torch.exp(z[i] @ z[k] / 0.2) for k in kept]).sum()
        total = total - torch.stack([torch.log(torch.exp(z[i] @ z[p] / 0.2) / others) for p in positives]).mean()
    ids = Identities(torch.arange(4), torch.tensor(patient), torch.tensor(study))
    assert torch.isclose(nt_xent(first, second, LossConfig(0.2, "positive"), ids).loss, total / 8, rtol=1e-12)


@settings(max_examples=100)
@given(
    st.integers(2, 40), st.integers(2, 20), st.floats(0.02, 5), st.floats(1e-3, 3),
    st.sampled_from(SAME_PATIENT), st.sampled_from(["dense", "tiled"]), st.booleans(), st.integers(0, 10**6),
)  # fmt: skip
def test_loss_and_gradient_equal_the_oracle(
    samples: int, size: int, tau: float, spread: float, same_patient: SamePatient, executor: ExecutorName,
    decoupled: bool, seed: int,
) -> None:  # fmt: skip
    first, second = projections(samples, size, seed, spread)
    ids = identities(samples, seed)
    group, positive = keys(ids, same_patient)
    config = LossConfig(tau, same_patient, executor, decoupled)
    loss, result = gradients(lambda a, b: nt_xent(a, b, config, ids).loss, first, second)
    if decoupled and len(torch.unique(group)) == 1:
        assert loss == 0
        assert not result.any()
        return
    expected, truth = gradients(
        lambda a, b: dense_nt_xent(a, b, tau, group, positive, decoupled=decoupled), first, second
    )
    assert torch.isclose(loss, expected, rtol=1e-10, atol=1e-12)
    # Where the loss is nearly zero the oracle is the difference of numbers near 1.
    assert (result - truth).norm() < 1e-8 * truth.norm() + 1e-12


def test_the_decoupled_loss_worked_by_hand() -> None:
    """Yeh et al. 2022, eq. 5: minus the similarity of the pair, plus the logarithm of the sum over the negatives."""
    first, second = projections(3, 4, seed=1)
    z = [row / row.norm() for row in [*first, *second]]
    total = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        negatives = torch.stack([torch.exp(z[i] @ z[k] / 0.5) for k in range(6) if k % 3 != i % 3]).sum()
        total = total - z[i] @ z[(i + 3) % 6] / 0.5 + torch.log(negatives)
    report = nt_xent(first, second, LossConfig(0.5, decoupled=True))
    assert torch.isclose(report.loss, total / 6, rtol=1e-12)
    coupled = nt_xent(first, second, LossConfig(0.5))
    assert report.loss < coupled.loss
    assert report[1:] == coupled[1:]  # the health does not depend on it


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("tau", [0.01, 0.5])
def test_a_decoupled_batch_of_one_patient_has_no_loss_when_patients_are_masked(
    executor: ExecutorName, tau: float
) -> None:
    first, second = projections(5, 8, seed=6)
    ids = Identities(torch.arange(5), torch.zeros(5, dtype=torch.int64), torch.tensor([1, 1, 2, 3, 4]))
    for same_patient in ("masked", "positive"):
        config = LossConfig(tau, same_patient, executor, decoupled=True)
        loss, result = gradients(partial(loss_alone, config, ids), first, second)
        assert loss == 0
        assert torch.equal(result, torch.zeros_like(result))


def loss_alone(config: LossConfig, ids: Identities, first: Tensor, second: Tensor) -> Tensor:
    return nt_xent(first, second, config, ids).loss


def loss_in_decimals(values: list[Decimal], samples: int, tau: Decimal) -> Decimal:
    size = len(values) // (2 * samples)
    rows = [values[k * size : (k + 1) * size] for k in range(2 * samples)]
    norms = [sum((x * x for x in row), Decimal(0)).sqrt() for row in rows]
    s = [
        [
            sum((x * y for x, y in zip(a, b, strict=True)), Decimal(0)) / (m * n) / tau
            for b, n in zip(rows, norms, strict=True)
        ]
        for a, m in zip(rows, norms, strict=True)
    ]
    pairs = range(2 * samples)
    partner = [(i + samples) % (2 * samples) for i in pairs]
    terms = [sum(((s[i][j] - s[i][partner[i]]).exp() for j in pairs if j != i), Decimal(0)).ln() for i in pairs]
    return sum(terms, Decimal(0)) / (2 * samples)


@pytest.mark.parametrize("executor", ["dense", "tiled"])
def test_a_vanishing_loss_is_as_accurate_as_any_other(executor: Any) -> None:
    torch.manual_seed(0)
    first = torch.eye(3, 4) + 0.1 * torch.randn(3, 4)
    second = first + 1e-3 * torch.randn(3, 4)
    loss, result = gradients(lambda a, b: nt_xent(a, b, LossConfig(0.02, executor=executor)).loss, first, second)
    with localcontext() as context:
        context.prec = 90
        values, tau, step = [Decimal(x) for x in torch.cat([first, second]).flatten().tolist()], Decimal("0.02"), None
        truth = loss_in_decimals(values, 3, tau)
        slopes = []
        for k in range(len(values)):
            step = Decimal("1e-30")
            up, down = ([*values[:k], values[k] + move, *values[k + 1 :]] for move in (step, -step))
            slopes.append(float((loss_in_decimals(up, 3, tau) - loss_in_decimals(down, 3, tau)) / (2 * step)))
    gradient = torch.tensor(slopes, dtype=torch.float64)
    assert 0 < float(truth) < 1e-15  # float64 autograd has no correct digit of it
    assert loss.item() == pytest.approx(float(truth), rel=1e-5)
    assert (result.flatten().double() - gradient).norm() < 1e-5 * gradient.norm()


def test_masking_changes_nothing_when_no_images_share_a_patient() -> None:
    first, second = projections(6, 5, seed=4)
    ids = Identities(*(torch.arange(6) for _ in range(3)))
    expected = nt_xent(first, second, LossConfig(0.1))
    for same_patient in SAME_PATIENT:
        for result, value in zip(nt_xent(first, second, LossConfig(0.1, same_patient), ids), expected, strict=True):
            assert torch.equal(result, value)


def test_a_sample_that_occurs_twice_is_not_its_own_negative() -> None:
    first, second = projections(5, 8, seed=5, spread=0.1)
    first, second = torch.cat([first, first[:1]]), torch.cat([second, second[:1]])
    ids = Identities(*(torch.tensor([0, 1, 2, 3, 4, 0]) for _ in range(3)))
    assert nt_xent(first, second, LossConfig(0.05), ids).loss < 0.01 < nt_xent(first, second, LossConfig(0.05)).loss


def test_a_batch_of_one_patient_has_no_loss_when_patients_are_masked() -> None:
    first, second = projections(5, 8, seed=6)
    ids = Identities(torch.arange(5), torch.zeros(5, dtype=torch.int64), torch.arange(5))
    loss, result = gradients(lambda a, b: nt_xent(a, b, LossConfig(0.5, "masked"), ids).loss, first, second)
    assert loss == 0
    assert torch.equal(result, torch.zeros_like(result))


def test_top1_and_top5_count_the_rows_whose_second_view_is_near() -> None:
    circle = torch.linspace(0, 3, 13)  # radians
    first = torch.stack([circle.cos(), circle.sin()], dim=1)
    same = nt_xent(first, first, LossConfig())
    assert [value.item() for value in (same.top1, same.top5, same.alignment)] == [1, 1, 0]
    # Two steps on: each side of a row has one first view at the same distance or nearer, and second views likewise.
    moved = nt_xent(first, first.roll(-2, 0), LossConfig())
    assert moved.top1 == 0
    assert 0 < moved.top5 < 1
    assert moved.alignment > 0.1


def test_half_precision_projections_keep_their_type_in_the_gradient() -> None:
    first, second = (part.bfloat16().requires_grad_() for part in projections(6, 5, seed=7))
    with torch.autocast("cpu", torch.bfloat16):
        report = nt_xent(first, second, LossConfig())
    assert report.loss.dtype == torch.float32
    torch.autograd.backward(report.loss)
    assert first.grad is not None and first.grad.dtype == torch.bfloat16


CONFIGS = [
    LossConfig(0.2, same, executor, decoupled)
    for same in SAME_PATIENT
    for executor in EXECUTORS
    for decoupled in (False, True)
]


def step_of_a_linear_model(rank: int, world: int, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The report and the parameter gradient of one step under DDP on this rank's share of 12 samples."""
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5).double()
    first, second = projections(12, 7, seed=3)
    ids = identities(12, seed=9)
    start = sum(SHARES[:rank])
    rows = slice(start, start + SHARES[rank]) if world > 1 else slice(None)
    parallel = DistributedDataParallel(model) if world > 1 else model
    first, second = parallel(torch.cat([first[rows], second[rows]])).chunk(2)
    report = nt_xent(first, second, config, Identities(*(part[rows] for part in ids)))
    torch.autograd.backward(report.loss)
    assert model.weight.grad is not None
    return torch.stack([value.detach() for value in report]), model.weight.grad


def steps(rank: int, world: int) -> list[tuple[Tensor, Tensor]]:
    return [step_of_a_linear_model(rank, world, config) for config in CONFIGS]


def test_parameter_gradients_are_the_global_ones_when_five_ranks_hold_unequal_shares() -> None:
    alone = steps(0, 1)
    everywhere = on_ranks(len(SHARES), steps)
    for result in everywhere:
        for (report, gradient), (expected, truth), (first, _) in zip(result, alone, everywhere[0], strict=True):
            assert torch.equal(report, first)
            assert torch.allclose(report, expected, rtol=1e-12, atol=1e-14)
            assert torch.allclose(gradient, truth, rtol=1e-12, atol=1e-14)


def failure(first: Tensor, second: Tensor, same_patient: Any = "negative", ids: Identities | None = None) -> str:
    try:
        if nt_xent(first, second, LossConfig(same_patient=same_patient), ids).loss.isnan():
            return why_skipped(torch.stack([first, second]))
    except (UserError, RunFailed) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def bad_inputs(rank: int, world: int) -> list[str]:
    """The error of each kind of bad input, on rank 1 alone or on all ranks."""
    torch.manual_seed(rank)
    good = torch.randn(4, 5)
    here = rank == 1
    poisoned, infinite, dead = good.clone(), good.clone(), good.clone()
    if here:
        poisoned[2, 3], infinite[0, 0], dead[1] = torch.nan, torch.inf, 0
    ids = Identities(*[torch.arange(4)] * 3)
    size, dtype = 6 if here else 5, torch.float64 if here else torch.float32
    return [
        failure(good[:, :4].repeat(1, 2)[:, :size], good[:, :4].repeat(1, 2)[:, :size]),
        failure(good.to(dtype), good.to(dtype)),
        failure(good, poisoned),
        failure(infinite, good),
        failure(dead, good),
        failure(good[: int(here)], good[: int(here)]),
        failure(good[:0], good[:0]),
        failure(good, good, "masked", ids if here else None),
        failure(good, good, "negative", ids if here else None),
        failure(good, good),
    ]


def test_bad_input_on_one_rank_is_the_same_error_on_all() -> None:
    everywhere = on_ranks(3, bad_inputs)
    size, dtype, poisoned, infinite, dead, one, none, unnamed, mixed, good = everywhere[0]
    assert everywhere == [everywhere[0]] * 3
    assert size.startswith("UserError") and "rank 0: d=5 torch.float32; rank 1: d=6" in size
    assert dtype.startswith("UserError") and "rank 1: d=5 torch.float64" in dtype
    for message in (poisoned, infinite):
        assert message == "projections are not finite: rank 1: 1 rows"
    assert dead.startswith("RunFailed: projections are zero and have no direction (rank 1: 1 rows)")
    assert one.startswith("UserError: the global batch has 1 readable samples")
    assert none.startswith("UserError: the global batch has 0 readable samples")
    for message in (unnamed, mixed):
        assert message.startswith("UserError: same_patient=")
        assert "needs the samples' identities, which rank 0, 2 does not have" in message
    assert good == ""


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(tau: float) -> None:
    with pytest.raises(UserError, match=r"loss\.temperature=.* must be positive"):
        LossConfig(tau)


def test_one_pair_alone_is_refused() -> None:
    with pytest.raises(UserError, match="no negatives"):
        nt_xent(torch.ones(1, 3), torch.ones(1, 3), LossConfig())


def test_projections_that_are_not_finite_leave_no_loss_and_no_gradient() -> None:
    first = torch.ones(4, 3)
    first[2] = torch.nan
    second = torch.ones(4, 3)
    loss, gradient = gradients(lambda a, b: nt_xent(a, b, LossConfig()).loss, first, second)
    assert loss.isnan()
    assert gradient.isnan().all()


def test_projections_too_small_for_fp32_squares_do_not_count_as_zeros() -> None:
    first, second = projections(4, 5, seed=8)
    expected = nt_xent(first, second, LossConfig())
    assert torch.isclose(
        nt_xent(1e-30 * first.float(), 1e-30 * second.float(), LossConfig()).loss.double(), expected.loss, rtol=1e-6
    )
    assert isinstance(expected, LossReport)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_the_triton_executor_is_refused_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UserError, match="needs a GPU"):
        nt_xent(torch.eye(4), torch.eye(4), LossConfig(executor="triton"))
