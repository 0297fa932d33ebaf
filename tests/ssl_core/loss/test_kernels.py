"""The Triton kernels in Triton's interpreter, compiled for sm_90 without a GPU, and on a GPU if there is one.

Whether kernels are interpreted is decided when Triton is imported (TRITON_INTERPRET), so what is interpreted runs in a
separate process, the `interpreter`; this process compiles.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels import KERNELS, SHARED_BYTES, TYPES, compile_kernel
from infra.errors import UserError
from ssl_core.loss import dense
from ssl_core.loss.executor_choice import why_kernels_fail
from ssl_core.loss.ntxent import LossConfig, dense_nt_xent, nt_xent
from ssl_core.loss.pair_sums import Keys, RowPairs, RowStats

pytest.importorskip("triton", reason="Triton is not installed")

# How far an operand may be from its value; with fp32, what is left is the rounding of exponents and sums.
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-20}
NEAR_START, NEAR_CONVERGENCE = 10.0, 0.1  # noise of the second view


@dataclass(frozen=True)
class Case:
    """A global batch: `shares` are the samples of each rank; this rank is `rank`."""

    shares: tuple[int, ...] = (30, 40)
    rank: int = 1
    d: int = 32
    temperature: float = 0.5
    noise: float = 1.0
    same_patient: Literal["negative", "masked", "positive"] = "negative"
    operands: torch.dtype = torch.float16
    splits: int | None = 2
    seed: int = 0
    device: str = "cpu"
    decoupled: bool = False


class Batch(NamedTuple):
    """All ranks' rows, first views before second ones in each rank's; partner: (N,); mine: this rank's.

    unrounded: `all_rows` in float64, from which the loss computes the terms of the partner.
    """

    all_rows: Tensor
    unrounded: Tensor
    keys: Keys | None
    partner: Tensor
    mine: slice


class Found(NamedTuple):
    """The result of an executor for a case. gradient: pair_gradient plus the gradient of the partner."""

    stats: RowStats
    pair_gradient: Tensor
    gradient: Tensor


def make(case: Case) -> Batch:
    generator = torch.Generator().manual_seed(case.seed)
    views, partner, samples, start = [], [], [], 0
    for share in case.shares:
        first = torch.randn(share, case.d, generator=generator, dtype=torch.float64)
        views += [first, first + case.noise * torch.randn(share, case.d, generator=generator, dtype=torch.float64)]
        partner.append(2 * start + torch.arange(2 * share).roll(share))
        samples += 2 * [torch.arange(start, start + share)]
        start += share
    sample = torch.cat(samples)
    patient, study = sample % 11, sample % 22  # spread over ranks; two studies a patient
    relations = {"negative": None, "masked": (patient, sample), "positive": (patient, study)}[case.same_patient]
    keys = None if relations is None else Keys(*(key.to(case.device) for key in relations))
    before = 2 * sum(case.shares[: case.rank])
    mine = slice(before, before + 2 * case.shares[case.rank])
    unrounded = F.normalize(torch.cat(views)).to(case.device)
    return Batch(unrounded.float(), unrounded, keys, torch.cat(partner).to(case.device), mine)


def run(executor: Any, case: Case, **options: Any) -> Found:
    """Run forward and backward like the loss: the backward pass takes the results of all ranks' forward passes."""
    all_rows, unrounded, keys, partner, mine = make(case)
    tau = case.temperature
    pairs = RowPairs(all_rows[mine], all_rows, keys, mine.start, partner[mine], tau, case.decoupled)
    stats = executor.forward(pairs, **options)
    of_all = executor.forward(RowPairs(all_rows, all_rows, keys, 0, partner, tau, case.decoupled), **options)
    at_partner = RowPairs(unrounded, unrounded, keys, 0, partner, tau).partner_similarities
    excess = of_all.others - at_partner
    partner_weight = -2 / of_all.positives
    if not case.decoupled:
        excess = torch.logaddexp(excess, torch.zeros_like(at_partner))
        partner_weight = torch.expm1(-excess) + torch.expm1(-excess[partner]) + 2 - 2 / of_all.positives
    lse = at_partner + excess
    pair_gradient = executor.backward(pairs, lse, of_all.positives, **options)
    return Found(stats, pair_gradient, pair_gradient.double() + partner_weight[mine, None] * unrounded[partner[mine]])


def errors_of(case: Case) -> dict[str, float]:
    """Return the errors of the kernels relative to the formula in float64.

    others, at_positives: largest absolute error, times tau. pair_gradient, gradient: norm of the error, relative, or to
    1e-12 where it is less: there weights are lost.
    """
    from ssl_core.loss import kernels  # noqa: PLC0415 - where this runs decides whether it is interpreted

    actual = run(kernels, case, operands=case.operands, splits=case.splits)
    expected = run(dense, case)
    assert torch.equal(actual.stats.positives, expected.stats.positives)
    assert actual.pair_gradient.dtype == torch.float32
    alone = expected.stats.others.isneginf()
    assert torch.equal(actual.stats.others.isneginf(), alone)
    away = (actual.stats.others - expected.stats.others)[~alone]
    at_positives = (actual.stats.at_positives - expected.stats.at_positives) / expected.stats.positives
    return {
        "others": float(away.abs().sum() and away.abs().max()) * case.temperature,
        "at_positives": float(at_positives.abs().sum() and at_positives.abs().max()) * case.temperature,
        "pair_gradient": float(
            (actual.pair_gradient - expected.pair_gradient).norm() / expected.pair_gradient.norm().clamp(min=1e-12)
        ),
        "gradient": float((actual.gradient - expected.gradient).norm() / expected.gradient.norm().clamp(min=1e-12)),
    }


def check(case: Case, errors: dict[str, float], slack: float = 1) -> None:
    # An error of a cosine becomes one of its exponent, 1/tau times as large.
    rounding = ROUNDING[case.operands] * slack
    assert errors["others"] < rounding, (case, errors)
    assert errors["at_positives"] < rounding, (case, errors)
    assert errors["pair_gradient"] < rounding * (1 + 0.2 / case.temperature), (case, errors)
    assert errors["gradient"] < rounding * (1 + 0.2 / case.temperature), (case, errors)


def prepare_the_interpreter() -> None:
    """Patch Triton's interpreter (3.9), which keeps bf16 as uint16 and multiplies it as integers."""
    import numpy as np  # noqa: PLC0415
    import triton.language as tl  # noqa: PLC0415
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle  # noqa: PLC0415

    np.seterr(over="ignore")  # of weights that are then left out: a row's with itself
    multiply = InterpreterBuilder.create_dot

    def widened(operand: Any) -> Any:
        if operand.dtype.scalar != tl.bfloat16:
            return operand
        return TensorHandle((operand.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    InterpreterBuilder.create_dot = lambda self, a, b, *rest: multiply(self, widened(a), widened(b), *rest)


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn"), prepare_the_interpreter) as process:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            process.submit(int).result()  # only now it starts
        yield process


# The default suite takes each type at the temperatures where most of its digits are lost, and where none are.
DEFAULT = {(torch.float16, 0.01), (torch.float16, 0.5), (torch.bfloat16, 0.01), (torch.float32, 0.07)}


@pytest.mark.parametrize(
    ("operands", "temperature"),
    [
        pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.slow)
        for case in product(ROUNDING, (0.01, 0.025, 0.07, 0.5, 1.0))
    ],
    ids=str,
)
def test_equals_the_formula_in_float64_at_every_temperature(
    interpreter: ProcessPoolExecutor, operands: torch.dtype, temperature: float
) -> None:
    for same_patient in ("negative", "positive"):
        for noise in (NEAR_START, NEAR_CONVERGENCE):
            case = Case(temperature=temperature, noise=noise, same_patient=same_patient, operands=operands)
            check(case, interpreter.submit(errors_of, case).result())


@pytest.mark.parametrize("temperature", [0.01, pytest.param(0.1, marks=pytest.mark.slow)])
def test_the_decoupled_loss_equals_the_formula_in_float64(interpreter: ProcessPoolExecutor, temperature: float) -> None:
    """Only extra positives and the lifts of weights differ from the other loss."""
    for noise in (NEAR_START, NEAR_CONVERGENCE):
        case = Case(temperature=temperature, noise=noise, same_patient="positive", decoupled=True)
        check(case, interpreter.submit(errors_of, case).result())


@settings(max_examples=3)
@given(
    st.builds(
        Case,
        shares=st.lists(st.integers(0, 90), min_size=2, max_size=3).map(lambda shares: (*shares, 2)),
        rank=st.integers(0, 2),
        d=st.integers(3, 70),
        temperature=st.floats(0.01, 5),
        noise=st.floats(0.01, 10),
        same_patient=st.sampled_from(["negative", "masked", "positive"]),
        decoupled=st.booleans(),
        operands=st.just(torch.float32),
        splits=st.integers(1, 5),
        seed=st.integers(0, 10**6),
    )
)
def test_equals_the_formula_in_float64_for_any_share(interpreter: ProcessPoolExecutor, case: Case) -> None:
    # In fp32, so that what is lost where a few rows' pulls cancel out stays small: 1e-4 would be a pair too many.
    check(case, interpreter.submit(errors_of, case).result(), slack=100)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case((512, 1024, 512), d=128, temperature=0.07, noise=NEAR_CONVERGENCE, splits=1),
        Case((512, 1024, 512), d=128, temperature=0.07, noise=NEAR_START, same_patient="masked", splits=None),
        Case((512, 512), d=512, temperature=0.01, noise=1),
    ],
    ids=str,
)
def test_equals_the_formula_in_float64_for_large_batches(interpreter: ProcessPoolExecutor, case: Case) -> None:
    check(case, interpreter.submit(errors_of, case).result())


def run_twice(case: Case) -> list[Found]:
    from ssl_core.loss import kernels  # noqa: PLC0415

    return [run(kernels, case, splits=case.splits) for _ in range(2)]


@pytest.mark.parametrize("splits", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_same_input_gives_the_same_bits(interpreter: ProcessPoolExecutor, splits: int) -> None:
    once, again = interpreter.submit(run_twice, Case((90, 90), splits=splits, same_patient="positive")).result()
    for first, second in zip([*once.stats, once.pair_gradient], [*again.stats, again.pair_gradient], strict=True):
        assert torch.equal(first, second)


def collapsed() -> RowStats:
    from ssl_core.loss import kernels  # noqa: PLC0415

    z = F.normalize(torch.randn(1, 100, generator=torch.Generator().manual_seed(0))).expand(140, -1).contiguous()
    return kernels.forward(RowPairs(z, z, None, 0, torch.arange(140).roll(70), 0.5), splits=2)


def test_equal_rows_are_not_above_each_other(interpreter: ProcessPoolExecutor) -> None:
    stats = interpreter.submit(collapsed).result()
    assert not stats.above.any()
    assert torch.allclose(stats.others, torch.tensor(2 + 138.0).log() + 0 * stats.others + 2 - 0.0144, atol=2e-3)


def ranks_of_the_own_view(case: Case) -> tuple[Tensor, Tensor]:
    from ssl_core.loss import kernels  # noqa: PLC0415

    options = {"operands": torch.float32, "splits": 3}
    return run(kernels, case, **options).stats.above, run(dense, case).stats.above


def test_above_counts_the_rows_that_are_nearer_than_the_second_view(interpreter: ProcessPoolExecutor) -> None:
    for same_patient in ("negative", "masked", "positive"):
        actual, expected = interpreter.submit(
            ranks_of_the_own_view, Case(noise=NEAR_START, same_patient=same_patient)
        ).result()
        assert expected.float().mean() > 1
        assert torch.equal(actual, expected)


@pytest.fixture
def compile_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("compile_anew")
@pytest.mark.parametrize(
    "operands",
    [
        torch.float16,
        pytest.param(torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_for_sm_90(kernel: str, operands: torch.dtype) -> None:
    compiled = compile_kernel(kernel, 128, operands, keyed=True, temperature=0.5, capability=90)
    assert compiled.shared_bytes <= SHARED_BYTES[90]
    assert compiled.tensor_core_instructions > 0
    # With fp32 operands, which are for tests, a few registers spill.
    assert operands == torch.float32 or compiled.spilled_bytes == 0


@pytest.mark.slow
@pytest.mark.usefixtures("compile_anew")
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("width", [16, 64, 256, 512])
@pytest.mark.parametrize("operands", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_compiles_for_sm_90_at_every_width(
    kernel: str, operands: torch.dtype, width: int, keyed: bool, temperature: float
) -> None:
    compiled = compile_kernel(kernel, width, operands, keyed, temperature, capability=90)
    assert compiled.shared_bytes <= SHARED_BYTES[90]
    assert compiled.tensor_core_instructions > 0
    assert compiled.spilled_bytes == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("operands", TYPES, ids=str)
@pytest.mark.parametrize("same_patient", ["negative", "masked", "positive"])
def test_equals_the_formula_in_float64_on_a_gpu(
    same_patient: Literal["negative", "masked", "positive"], operands: torch.dtype
) -> None:
    for temperature in (0.01, 0.07, 0.5):
        for noise in (NEAR_START, NEAR_CONVERGENCE):
            case = Case((700, 900), 1, 128, temperature, noise, same_patient, operands, None, device="cuda")
            check(case, errors_of(case), slack=2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("d", [64, 200, 256, 512])
def test_the_same_input_gives_the_same_bits_on_a_gpu(d: int) -> None:
    once, again = run_twice(Case((700, 900), d=d, splits=None, same_patient="positive", device="cuda"))
    for first, second in zip([*once.stats, once.pair_gradient], [*again.stats, again.pair_gradient], strict=True):
        assert torch.equal(first, second)


def loss_and_gradients() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second = torch.randn(2, 50, 24, generator=torch.Generator().manual_seed(0)).unbind()
    second = first + 0.5 * second
    views = [first.requires_grad_(), second.requires_grad_()]
    actual = nt_xent(first, second, LossConfig(temperature=0.1, executor="triton")).loss
    expected = dense_nt_xent(first.double(), second.double(), 0.1)
    gradient, expected_gradient = (torch.cat(torch.autograd.grad(loss, views)) for loss in (actual, expected))
    return actual.detach(), expected.detach(), gradient, expected_gradient


def test_the_loss_by_this_executor_equals_equation_4(interpreter: ProcessPoolExecutor) -> None:
    actual, expected, gradient, expected_gradient = interpreter.submit(loss_and_gradients).result()
    assert torch.isclose(actual.double(), expected, rtol=1e-3)
    assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


def test_kernels_that_run_are_found_to_run(interpreter: ProcessPoolExecutor) -> None:
    for keyed in (False, True):
        assert interpreter.submit(why_kernels_fail, torch.device("cpu"), 24, keyed, 0.1).result() is None


def test_wider_rows_than_a_processor_holds_are_refused() -> None:
    from ssl_core.loss import kernels  # noqa: PLC0415

    z = F.normalize(torch.ones(4, 513))
    with pytest.raises(UserError, match=r"up to 512 numbers, not 513; use loss\.executor=tiled"):
        kernels.forward(RowPairs(z, z, None, 0, torch.tensor([2, 3, 0, 1]), 0.5))
