from collections.abc import Iterator

import numpy as np
import pytest

from evaluation.results.datasets import PartSize
from evaluation.results.paper import DISEASED, TABLE_III, has_papers_share, in_paper
from infra.arrays import Bool, Float64
from tests.support.probe_results import in_paper_dataset, made_dataset

ROUNDING = 0.0501  # in percent, of a figure with one decimal


def printed(name: str) -> Iterator[tuple[float, float, float, float]]:
    """Yield ACC, SEN, SPE and F1 of each fraction."""
    for acc, _, sen, spe, f1 in TABLE_III[name].values():
        yield acc, sen, spe, f1


def agrees(values: Float64, figure: float) -> Bool:
    close: Bool = np.abs(100 * values - figure) <= ROUNDING
    return close


def f1_of_healthy(diseased: Float64 | int, healthy: Float64 | int, sen: Float64, spe: Float64) -> Float64:
    return 2 * healthy * spe / (2 * healthy * spe + healthy * (1 - spe) + diseased * (1 - sen))


@pytest.mark.parametrize("name", TABLE_III)
def test_sen_and_spe_give_acc_and_f1_only_if_the_share_of_diseased_images_is_the_papers(name: str) -> None:
    share = np.arange(1, 1000)[:, None, None] / 1000
    possible = np.ones(len(share), np.bool_)
    for acc, sen, spe, f1 in printed(name):
        exact = np.linspace(-0.05, 0.05, 11)
        true_sen, true_spe = (sen + exact)[None, :, None] / 100, (spe + exact)[None, None, :] / 100
        fits = agrees(share * true_sen + (1 - share) * true_spe, acc)
        fits &= agrees(f1_of_healthy(share, 1 - share, true_sen, true_spe), f1)
        possible &= fits.any(axis=(1, 2))
    assert (share[possible].min(), share[possible].max()) == DISEASED[name]


@pytest.mark.parametrize(("name", "diseased", "healthy"), [("c19-cohen", 106, 53), ("covidgr", 85, 86)])
def test_only_one_test_part_of_so_many_images_gives_table_iii_in_whole_images(
    name: str, diseased: int, healthy: int
) -> None:
    found = []
    for positive in range(5, diseased + healthy - 4):
        negative = diseased + healthy - positive
        right, calm = np.arange(positive + 1)[:, None], np.arange(negative + 1)[None, :]
        sens, spes = right / positive, calm / negative
        possible = all(
            (
                agrees(sens, sen)
                & agrees(spes, spe)
                & agrees((right + calm) / (positive + negative), acc)
                & agrees(f1_of_healthy(positive, negative, sens, spes), f1)
            ).any()
            for acc, sen, spe, f1 in printed(name)
        )
        found += [(positive, negative)] if possible else []
    assert found == [(diseased, healthy)]


@pytest.mark.parametrize(
    ("name", "positive", "negative", "same"),
    [
        ("chestxray14", 555, 25041, True),  # the official list, pneumonia against everything else
        ("chestxray14", 555, 9861, False),  # against No Finding
        ("chestxray14", 555, 555, False),
        ("cell", 390, 234, True),
        ("cell", 3883, 1349, False),
    ],
)
def test_share_of_diseased_test_images_decides_whether_acc_and_f1_compare(
    name: str, positive: int, negative: int, same: bool
) -> None:
    test = PartSize(positive + negative, positive + negative, positive, negative)
    assert has_papers_share(made_dataset("gazda2021", name=name, test=test)) is same


@pytest.mark.parametrize("name", TABLE_III)
def test_first_task_of_a_dataset_is_the_papers(name: str) -> None:
    assert in_paper(in_paper_dataset(name))
    assert has_papers_share(in_paper_dataset(name))
