from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from evaluation.data.labeled_sets import PretrainingSamples, ProbeData, open_labeled_sets
from evaluation.probe import probe
from evaluation.probe_config import ProbeConfig
from evaluation.results.selection import NAME, CheckpointSelection
from evaluation.selection.label_free import MEASURES
from evaluation.selection.unseen_images import unseen_images
from infra.errors import UserError

MakeRun = Callable[..., Path]


def seen_but(packed: object, patients: int) -> PretrainingSamples:
    ids = packed.samples.patient_ids  # type: ignore[attr-defined]
    unseen = np.unique(ids)[:patients]
    return PretrainingSamples(np.empty(0, np.uint64), np.setdiff1d(ids, unseen))


def test_held_out_images_are_of_unseen_patients_or_said_to_be_all(shards: Path) -> None:
    [packed] = open_labeled_sets(ProbeData([str(shards)]))
    chosen = unseen_images([packed], seen_but(packed, 110))
    assert chosen.images == np.isin(packed.samples.patient_ids, np.unique(packed.samples.patient_ids)[:110]).sum()
    assert chosen.who == f"images of patients whom pretraining has not seen: {chosen.images} of cell"
    few = unseen_images([packed], seen_but(packed, 5))
    assert (few.images, few.who[:36]) == (116, "all images, since only 5 are of pati")
    assert unseen_images([packed], None).images == 116


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
    selection = msgspec.json.decode((run / NAME).read_bytes(), type=CheckpointSelection)
    assert list(selection.measures) == ["epoch 1", "epoch 2"]
    assert all(set(values) == set(MEASURES) for values in selection.measures.values())
    assert selection.chosen in selection.measures
    judged = [verdict.measure for verdict in selection.verdicts]
    assert judged == [*MEASURES, "pretext loss", "last", "random"]


@pytest.mark.parametrize("checkpoints", ["last", [3]])
def test_choosing_among_one_checkpoint_is_refused(tmp_path: Path, checkpoints: object) -> None:
    with pytest.raises(UserError, match="select=true chooses among checkpoints"):
        ProbeConfig(tmp_path, ProbeData(["shards"]), checkpoints=checkpoints, select=True)  # type: ignore[arg-type]
