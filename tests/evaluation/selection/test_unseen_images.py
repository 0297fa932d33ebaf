from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from evaluation.data.labeled_sets import LabeledSet, ProbeData, open_labeled_sets
from evaluation.data.overlap import Seen
from evaluation.probe import probe
from evaluation.probe_config import ProbeConfig
from evaluation.results.selection import SELECTION_NAME, CheckpointSelection
from evaluation.selection.label_free import MEASURES
from evaluation.selection.unseen_images import unseen_images
from infra.errors import UserError

MakeRun = Callable[..., Path]


def seen_but(labeled_set: LabeledSet, patients: int) -> dict[str, Seen]:
    """Pretraining saw all but so many patients: half of the others by name, half in a picture."""
    ids = labeled_set.samples.patient_ids
    seen = ~np.isin(ids, np.unique(ids)[:patients])
    by_name = seen & (ids % 2 == 0)
    return {labeled_set.label: Seen(seen & ~by_name, by_name, [""] * len(ids), pictures_compared=True)}


def test_measured_images_are_of_unseen_patients_or_described_as_all(shards: Path) -> None:
    [labeled_set] = open_labeled_sets(ProbeData([str(shards)]))
    images = unseen_images([labeled_set], seen_but(labeled_set, 110))
    assert (
        images.count == np.isin(labeled_set.samples.patient_ids, np.unique(labeled_set.samples.patient_ids)[:110]).sum()
    )
    assert images.description == f"images of patients that pretraining has not seen: {images.count} of cell"
    few = unseen_images([labeled_set], seen_but(labeled_set, 5))
    assert (few.count, few.description[:38]) == (116, "all images, because only 5 are from pa")
    assert unseen_images([labeled_set], {}).count == 116


def test_selection_measures_every_checkpoint_and_judges_every_measure(run: Path, shards: Path) -> None:
    config = ProbeConfig(
        run,
        ProbeData([str(shards)]),
        presets=["gazda2021"],
        executor="torchvision",
        search="serial",
        controls=False,
        few_labels=False,
        select=True,
        folds=2,
        bootstrap_resamples=100,
    )
    probe(config)
    selection = msgspec.json.decode((run / SELECTION_NAME).read_bytes(), type=CheckpointSelection)
    assert list(selection.measures) == ["epoch 1", "epoch 2"]
    assert all(set(values) == set(MEASURES) for values in selection.measures.values())
    assert selection.chosen in selection.measures
    judged = [verdict.measure for verdict in selection.verdicts]
    assert judged == [*MEASURES, "pretext loss", "last", "random"]


@pytest.mark.parametrize("checkpoints", ["last", [3]])
def test_choosing_among_one_checkpoint_is_refused(tmp_path: Path, checkpoints: Any) -> None:
    with pytest.raises(UserError, match="select=true needs several checkpoints"):
        ProbeConfig(tmp_path, ProbeData(["shards"]), checkpoints=checkpoints, select=True)
