"""The health of a step: that of the tensors the engine made, whatever the micro-batches and ranks."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from infra.ranks.processes import Ranks
from ssl_core.engines import Engine, EngineConfig, EngineSetup, build_engine
from ssl_core.loss.agreement import GlobalBatch, agree
from ssl_core.loss.health import geometry
from ssl_core.loss.ntxent import Identities, LossConfig
from ssl_core.model.optimizer import OptimConfig
from ssl_core.pretraining.health import MOST_SAMPLES, Health, HealthWatch
from tests.support.process_group import on_ranks
from tests.support.small_encoder import small_encoder, views_of

SAMPLES = 16
PATIENT = torch.tensor([0, 1, 0, 2, 1, 3, 4, 0, 5, 6, 6, 7, 8, 9, 10, 2])
LOSS = LossConfig(same_patient="masked")
ALONE = Ranks()


def engine_of(parts: int) -> Engine:
    return build_engine(
        EngineSetup(EngineConfig(), OptimConfig(), LOSS, "fp32", torch.device("cpu"), micro_batches=parts),
        small_encoder(),
    )


def identities(rows: slice = slice(None)) -> Identities:
    return Identities(torch.arange(SAMPLES)[rows], PATIENT[rows], PATIENT[rows])


def watched(engine: Engine, small: int, ranks: Ranks = ALONE, rows: slice = slice(None)) -> Health | None:
    watch, ids = HealthWatch(engine.encoder.head, LOSS, small, ranks), identities(rows)
    with watch.watching():
        engine.backward([view[rows] for view in views_of(SAMPLES, small=small)], agreed_on(ids))
    return watch.measure(ids, torch.ones(len(ids.instance), dtype=torch.bool))


def agreed_on(ids: Identities) -> GlobalBatch:
    return agree(len(ids.instance), LOSS, ids)


@pytest.mark.parametrize(("parts", "small"), [(1, 0), (3, 2)])
def test_is_that_of_the_large_views_in_the_order_of_the_samples(parts: int, small: int) -> None:
    engine = engine_of(parts)
    made: list[Tensor] = []
    hook = engine.encoder.register_forward_hook(lambda module, images, z: made.append(z.detach()))
    health = watched(engine, small)
    hook.remove()
    z = torch.empty(2, SAMPLES, made[0].shape[1])
    for part in range(parts):
        z[:, part::parts] = made[part * (1 + bool(small))].reshape(2, -1, z.shape[2])
    first, second = F.normalize(z, dim=2)
    similarities = first @ second.T
    assert health is not None
    values = health.values
    assert values["health/positive_similarity"] == pytest.approx(similarities.diagonal().mean().item(), rel=1e-5)
    strangers = similarities[PATIENT[:, None] != PATIENT]
    assert values["health/negative_similarity"] == pytest.approx(strangers.mean().item(), rel=1e-5)
    assert values["health/projection_rankme"] == pytest.approx(geometry(z).rankme.item(), rel=1e-5)
    assert sum(health.histograms["similarity/negatives"].counts) == len(strangers)
    assert sum(health.histograms["similarity/positives"].counts) == SAMPLES


def test_watching_changes_no_bit_of_the_gradient() -> None:
    watched_engine, plain = engine_of(2), engine_of(2)
    watched(watched_engine, small=0)
    plain.backward(views_of(SAMPLES, small=0), agreed_on(identities()))
    expected = plain.gradients()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in watched_engine.gradients().items())


def test_many_samples_are_represented_by_evenly_spaced_ones() -> None:
    head, samples = torch.nn.Identity(), 3 * MOST_SAMPLES
    watch = HealthWatch(head, LossConfig(), 0, ALONE)
    rows = torch.randn(2, samples, 8, generator=torch.Generator().manual_seed(0))
    with watch.watching():
        head(rows.flatten(0, 1))
    health = watch.measure(Identities(*[torch.arange(samples)] * 3), torch.ones(samples, dtype=torch.bool))
    assert health is not None
    expected = geometry(rows[:, ::3])
    assert health.values["health/backbone_rankme"] == pytest.approx(expected.rankme.item(), rel=1e-6)
    assert health.values["loss/chance"] == pytest.approx(np.log(2 * samples - 1))


def on_one_rank(rank: int, world: int, shares: list[int]) -> dict[str, float] | None:
    rows = slice(sum(shares[:rank]), sum(shares[: rank + 1]))
    health = watched(engine_of(1), 0, Ranks(rank, world), rows)
    return health.values if health else None


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[11, 5], [7, 0, 9]])
def test_is_the_same_however_the_batch_is_spread(shares: list[int]) -> None:
    values, *others = on_ranks(len(shares), on_one_rank, shares)
    assert values == pytest.approx(on_one_rank(0, 1, [SAMPLES]), rel=1e-4)
    assert others == [None] * (len(shares) - 1)
