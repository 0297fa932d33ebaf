"""The invariance gate: one global batch gives the same loss and the same gradients however it is divided.

Every engine, world size, share and cut into micro-batches is held against plain autograd in float64, in one process,
with torch's own batch norm over the whole batch. Three arithmetics:

- `exact`: parameters, gradients and what engines do with them in fp32, but the network's inner arithmetic in float64.
  So every gradient is within fp32's last digits of the oracle's, or something in how it was spread is wrong.
- `fp64`: all in float64. DeepSpeed averages no float64 gradients, and ZeRO keeps fp32 weights, so this is DDP's.
- `fp32`: all in fp32. Layers upon layers of batch norm turn rounding into errors of 1e-5, in plain autograd as well,
  which is printed too; and where rounding takes a ReLU over its kink, of 1e-2. So here the network is smooth.

`pytest -s` prints what each combination reaches, `-m slow` those that the default leaves out.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import cycle, product
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.gpu_ranks import smooth
from ssl_core.engines import EngineConfig, EngineSetup, build_engine
from ssl_core.loss.agreement import agree
from ssl_core.loss.config import SamePatient
from ssl_core.loss.ntxent import Identities, LossConfig, dense_nt_xent
from ssl_core.model.encoder import Encoder
from ssl_core.model.optimizer import OptimConfig
from tests.support.process_group import on_ranks
from tests.support.small_encoder import small_encoder, small_encoder_in_double, views_of

CPU = torch.device("cpu")
SAMPLES = 16
SMALL = 3  # small views, where there are any
# Samples of each rank, by world size.
SHARES: dict[int, list[tuple[int, ...]]] = {1: [(16,)], 2: [(8, 8), (11, 5)], 4: [(4, 4, 4, 4), (7, 0, 6, 3)]}
ENGINES = {
    "ddp": EngineConfig(),
    **{f"zero-{stage}": EngineConfig("deepspeed", zero_stage=stage) for stage in (0, 1, 2)},
}
SAME_PATIENT: tuple[SamePatient, ...] = ("negative", "masked", "positive")
TOLERANCE = {"exact": 1e-6, "fp64": 1e-11, "fp32": 1e-4}
# One sample occurs twice; patients with two studies; studies of two images.
SAMPLE = torch.tensor([*range(15), 3])
PATIENT = torch.tensor([0, 1, 0, 2, 1, 3, 4, 0, 5, 6, 6, 7, 8, 9, 10, 2])
STUDY = torch.tensor([0, 1, 20, 2, 1, 3, 4, 0, 5, 6, 26, 7, 8, 9, 10, 2])

Found = tuple[float, dict[str, Tensor]]  # the loss, and each parameter's gradient in float64


class Case(NamedTuple):
    shares: tuple[int, ...]
    engine: str
    parts: int
    same_patient: SamePatient
    arithmetic: str
    backbone: str = ""  # by default half of a ResNet
    options: bool = False  # the decoupled loss, batch norm behind the head, and small views
    padded: bool = False  # with samples that do not count, so that all shares are equally long


def encoder(backbone: str, arithmetic: str, options: bool, dtype: torch.dtype | None = None) -> Encoder:
    if arithmetic == "exact" and dtype is None:
        return small_encoder_in_double(backbone, head_norm=options)
    model = small_encoder(backbone, head_norm=options)
    if arithmetic == "fp32":
        smooth(model)
    return model.to(dtype or (torch.float64 if arithmetic == "fp64" else torch.float32))


@lru_cache(4)
def oracle(
    parts: tuple[tuple[int, ...], ...],
    same_patient: str,
    backbone: str,
    arithmetic: str,
    options: bool,
    dtype: torch.dtype = torch.float64,
) -> Found:
    """Autograd in one process; each part of the batch, a list of samples, is normalized by itself."""
    model, images = (
        encoder(backbone, arithmetic, options, dtype).train(),
        [view.to(dtype) for view in views_of(SAMPLES, small=SMALL * options)],
    )
    sizes = [torch.stack(of_size) for of_size in (images[:2], images[2:]) if of_size]  # (views, B, 1, H, W) each
    projections = [
        torch.cat([model(views[:, part].flatten(0, 1)).unflatten(0, (len(views), -1)) for views in sizes])
        for part in parts
    ]
    order = torch.cat([torch.tensor(part) for part in parts]).argsort()
    first, second, *small = torch.cat(projections, dim=1)[:, order]
    # Group and positive of the 2B rows, as the loss defines them.
    group = {"negative": SAMPLE, "masked": PATIENT, "positive": PATIENT}[same_patient]
    positive = STUDY if same_patient == "positive" else torch.arange(SAMPLES)
    loss = dense_nt_xent(first, second, 0.5, group.repeat(2), positive.repeat(2), decoupled=options, small=small)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return loss.item(), {name: value.double() for name, value in zip(names, gradients, strict=True)}


def parts_of(shares: Sequence[int], parts: int) -> tuple[tuple[int, ...], ...]:
    """The samples that share batch statistics: every `parts`-th sample of each rank's share."""
    starts = [sum(shares[:rank]) for rank in range(len(shares))]
    return tuple(
        tuple(start + k for start, n in zip(starts, shares, strict=True) for k in range(part, n, parts))
        for part in range(parts)
    )


def on_one_rank(rank: int, world: int, cases: list[Case]) -> list[list[str | float]]:
    """Return, on the first rank, the errors of every case: of the loss, of the worst gradient, its name, and plain."""
    rows: list[list[str | float]] = []
    for case in cases:
        result = spread(case, rank)
        if rank == 0:
            parts = parts_of(case.shares, case.parts)
            of_case = (parts, case.same_patient, case.backbone, case.arithmetic, case.options)
            exact = plain = oracle(*of_case)
            if case.arithmetic == "fp32":
                plain = oracle(*of_case, torch.float32)
            rows.append([*errors(result, exact), errors(plain, exact)[1]])
    return rows


def spread(case: Case, rank: int) -> Found:
    rows = slice(sum(case.shares[:rank]), sum(case.shares[: rank + 1]))
    loss = LossConfig(0.5, case.same_patient, decoupled=case.options)
    setup = EngineSetup(ENGINES[case.engine], OptimConfig(), loss, "fp32", CPU, micro_batches=case.parts)
    engine = build_engine(setup, encoder(case.backbone, case.arithmetic, case.options))
    agreed = agree(case.shares[rank], loss, Identities(SAMPLE[rows], PATIENT[rows], STUDY[rows]))
    views, counted = [view[rows] for view in views_of(SAMPLES, small=SMALL * case.options)], None
    if case.padded:
        counted = torch.arange(max(case.shares)) < case.shares[rank]
        more = int((~counted).sum())
        views = [torch.cat([view, torch.ones(more, *view.shape[1:])]) for view in views]
    report = engine.backward(views, agreed, counted)
    gradients = {name: value.double() for name, value in engine.gradients().items()}
    return report.loss.item(), gradients if rank == 0 else {}


def errors(result: Found, expected: Found) -> tuple[float, float, str]:
    """The relative error of the loss, and the largest of a parameter's gradient, ||g - g0|| / ||g0||, with its name.

    A bias that batch norm takes away again, at once or after a projection, has the gradient 0: what is left are the
    last digits of sums over images whose terms are not small. So has the scale of a batch norm whose channels all pass
    another batch norm, as in DenseNets. So the error of a bias is relative to a thirtieth of its weight's gradient, if
    its own is smaller, and that of a scale to its bias's gradient.
    """
    (loss, gradients), (loss0, gradients0) = result, expected
    assert gradients.keys() == gradients0.keys()
    norms = {name: gradient.norm() for name, gradient in gradients0.items()}
    sizes = dict(norms)
    for bias in (name for name in norms if name.endswith(".bias")):
        weight = bias.removesuffix("bias") + "weight"
        sizes[bias] = torch.maximum(norms[bias], norms[weight] / 30)
        if gradients0[weight].dim() == 1:
            sizes[weight] = torch.maximum(norms[weight], norms[bias])
    relative = {name: ((gradients[name] - gradients0[name]).norm() / sizes[name]).item() for name in gradients0}
    name = max(relative, key=relative.__getitem__)
    return abs((loss - loss0) / loss0), relative[name], name


def check(world: int, cases: list[Case]) -> None:
    cases = sorted(cases, key=lambda case: (case.shares, case.arithmetic, case.parts, case.same_patient))
    failed = []
    for case, (loss, gradient, name, plain) in zip(cases, on_ranks(world, on_one_rank, cases)[0], strict=True):
        line = f"{'+'.join(map(str, case.shares)):8} {case.engine:7} {case.parts} part(s)  {case.same_patient:9}"
        line += f"{case.arithmetic:6} {case.backbone}{' options' * case.options}{' padded' * case.padded} "
        line += f"loss {loss:.0e}  gradient {gradient:.0e} ({name})"
        line += f"; plain autograd {plain:.0e}" if case.arithmetic == "fp32" else ""
        print(line)  # noqa: T201
        if not max(loss, gradient) < TOLERANCE[case.arithmetic]:
            failed.append(line)
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4])
def test_loss_and_gradients_are_those_of_one_process_when_the_batch_is_spread(world: int) -> None:
    cuts: list[tuple[int, SamePatient]] = [(1, "negative"), (2, "positive"), (3, "masked")]
    harder = SHARES[world][-1]
    if world == 2:  # where every engine makes every cut
        cases = [Case(harder, engine, *cut, "exact") for engine, cut in product(ENGINES, cuts)]
    else:
        cases = [Case(harder, engine, *cut, "exact") for engine, cut in zip(ENGINES, cycle(cuts))]
    cases += [Case(shares, "ddp", 2, "positive", "exact") for shares in SHARES[world][:-1]]
    cases += [Case(harder, "ddp", 3, "masked", "fp64")]
    cases += [Case(harder, engine, 1, "negative", "fp32") for engine in ("ddp", "zero-2")]
    cases += [Case(harder, "ddp", 2, "positive", "exact", options=True)]
    cases += [Case(harder, "zero-1", 2, "positive", "exact", options=True, padded=True)]
    check(world, cases)


def test_the_same_holds_for_a_network_of_each_kind() -> None:
    backbones = ("timm/convnext_atto", "timm/vit_tiny_patch16_224")
    check(2, [Case((11, 5), "ddp", 2, "positive", "exact", backbone) for backbone in backbones])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("backbone", ["densenet121", "convnext_tiny", "vit_b_32", "timm/resnet50"])
def test_the_same_holds_for_the_usual_networks(backbone: str) -> None:
    check(4, [Case((7, 0, 6, 3), engine, 1, "masked", "exact", backbone) for engine in ("ddp", "zero-2")])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world", SHARES)
def test_loss_and_gradients_are_those_of_one_process_in_every_combination(world: int) -> None:
    combinations = list(product(SHARES[world], ENGINES, (1, 2, 3), SAME_PATIENT))
    cases = [Case(*combination, arithmetic) for combination in combinations for arithmetic in ("exact", "fp32")]
    cases += [Case(*combination, "fp64") for combination in combinations if combination[1] == "ddp"]
    check(world, cases)
