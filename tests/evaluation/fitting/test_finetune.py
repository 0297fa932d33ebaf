import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from torch import nn

from evaluation.data.features import Preprocessing
from evaluation.fitting.finetune import FinetuneConfig, FinetunedNetwork, finetune
from evaluation.probe_config import ProbeConfig
from infra.errors import RunFailed, UserError
from infra.options import registered
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata
from ssl_core.model.encoder import ModelConfig, untrained_backbone
from ssl_core.views.batches import WholeImage, image_batches
from ssl_core.views.spec import ViewSpec

EXECUTOR = "torchvision"
INPUT = Preprocessing(32, mean=0.5, std=0.25, executor="TorchvisionExecutor", fit="pad", mirrored=False)
CONFIG = FinetuneConfig(epochs=2, learning_rate=1e-3, local_batch=8)
SPEC = ViewSpec(size_px=32)
UNCHANGED = ViewSpec(
    size_px=32,
    crop_area=(1.0, 1.0),
    crop_aspect=(1.0, 1.0),
    flip_probability=0.0,
    rotation_degrees=0.0,
    blur_probability=0.0,
    brightness=0.0,
    contrast=0.0,
)


class Case(NamedTuple):
    """The images of conftest's Cell: the official test part, and six folds of the others, of which four train."""

    shards: ShardSet
    ids: NDArray[np.uint64]
    classes: NDArray[np.int64]
    fold: NDArray[np.int64]

    @property
    def in_test(self) -> NDArray[np.bool_]:
        return self.fold < 0

    def of(self, chosen: NDArray[np.bool_]) -> "Case":
        return Case(self.shards, self.ids[chosen], self.classes[chosen], self.fold[chosen])


@pytest.fixture(scope="module")
def case(shards: Path) -> Case:
    opened = ShardSet([shards])
    ids = np.concatenate([opened.index(shard)["sample"] for shard in range(len(opened.shards))])
    known = list(packed_metadata(opened))
    classes = np.array([values["labels"]["PNEUMONIA"] for values in known])
    in_test = np.array([values["split"] == "test" for values in known])
    fold = np.full(len(ids), -1)
    for code in (0, 1):
        inside = np.flatnonzero((classes == code) & ~in_test)
        fold[inside] = np.arange(len(inside)) % 6
    return Case(opened, ids, classes, fold)


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    """A network of one layer, for properties that all networks share."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(1, 16, 5, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*layers).eval()


def finetuned(
    backbone: nn.Module, case: Case, config: FinetuneConfig = CONFIG, spec: ViewSpec = SPEC, seed: int = 0
) -> FinetunedNetwork:
    return finetune(
        backbone,
        case.shards,
        ids=case.ids,
        classes=case.classes,
        fold=case.fold,
        spec=spec,
        preprocessing=INPUT,
        config=config,
        view_executor=EXECUTOR,
        device=torch.device("cpu"),
        seed=seed,
    )


@pytest.fixture(scope="module")
def result(backbone: nn.Module, case: Case) -> FinetunedNetwork:
    return finetuned(backbone, case)


def test_network_finds_the_patch_in_new_images_when_it_was_trained_on_labels(case: Case) -> None:
    untrained = untrained_backbone(ModelConfig("resnet18", 16, 8), seed=0)
    result = finetuned(untrained, case, replace(CONFIG, epochs=1))
    assert result.probabilities.shape == (32,)
    assert roc_auc_score(case.classes[case.in_test], result.probabilities) > 0.9
    assert np.array_equal(result.validation_rows, np.flatnonzero(case.fold == 1))
    assert roc_auc_score(case.classes[result.validation_rows], result.validation) > 0.9
    assert result.epoch_auc > 0.9


def test_result_is_the_same_for_a_seed_and_another_for_another_and_the_backbone_stays_as_it_was(
    backbone: nn.Module, case: Case, result: FinetunedNetwork
) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    again, other = (finetuned(backbone, case, seed=seed) for seed in (0, 1))
    assert np.array_equal(again.probabilities, result.probabilities)
    assert np.array_equal(again.validation, result.validation)
    assert (again.epoch, again.epoch_auc) == (result.epoch, result.epoch_auc)
    assert not np.array_equal(other.probabilities, result.probabilities)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.training


def test_test_labels_play_no_role_when_they_are_flipped(
    backbone: nn.Module, case: Case, result: FinetunedNetwork
) -> None:
    flipped = case._replace(classes=np.where(case.in_test, 1 - case.classes, case.classes))
    same = finetuned(backbone, flipped)
    assert np.array_equal(same.probabilities, result.probabilities)
    assert (same.epoch, same.epoch_auc) == (result.epoch, result.epoch_auc)


def test_images_of_the_test_part_play_no_role_when_most_of_them_are_left_out(
    backbone: nn.Module, case: Case, result: FinetunedNetwork
) -> None:
    few = np.flatnonzero(case.in_test)[::8]
    fewer = finetuned(backbone, case.of(~case.in_test | np.isin(np.arange(len(case.ids)), few)))
    assert np.array_equal(fewer.validation, result.validation)
    # The convolutions of a smaller batch may add up in another order.
    np.testing.assert_allclose(fewer.probabilities, result.probabilities[::8], atol=1e-4)


def test_predictions_are_in_the_order_of_the_rows(backbone: nn.Module, case: Case, result: FinetunedNetwork) -> None:
    turned = np.arange(len(case.ids))[::-1]
    back = finetuned(backbone, Case(case.shards, case.ids[turned], case.classes[turned], case.fold[turned]))
    assert np.array_equal(back.probabilities[::-1], result.probabilities)
    assert np.array_equal(back.validation[::-1], result.validation)
    assert np.array_equal(turned[back.validation_rows][::-1], result.validation_rows)


def test_labels_that_choose_the_epoch_teach_nothing_and_those_for_the_threshold_choose_nothing(
    backbone: nn.Module, case: Case, result: FinetunedNetwork
) -> None:
    flipped = case._replace(classes=np.where(case.fold == 0, 1 - case.classes, case.classes))
    honest, misled = (finetuned(backbone, labeled, replace(CONFIG, epochs=1)) for labeled in (case, flipped))
    assert np.array_equal(honest.probabilities, misled.probabilities)
    assert honest.epoch_auc == pytest.approx(1 - misled.epoch_auc, abs=1e-12)
    flipped = case._replace(classes=np.where(case.fold == 1, 1 - case.classes, case.classes))
    same = finetuned(backbone, flipped)
    assert (same.epoch, same.epoch_auc) == (result.epoch, result.epoch_auc)
    assert np.array_equal(same.validation, result.validation)
    assert np.array_equal(same.probabilities, result.probabilities)


def test_epoch_of_the_best_auc_is_the_one_whose_network_scores(backbone: nn.Module, case: Case) -> None:
    choosing = np.flatnonzero(case.fold == 0)
    twice = np.concatenate([np.flatnonzero(~case.in_test), choosing])  # these images are the test part too
    classes = case.classes.copy()
    classes[choosing] = np.random.default_rng(0).permutation(classes[choosing])  # so that the AUC goes up and down
    opposite = np.where(case.fold == 0, 1 - classes, classes)
    fold = np.concatenate([case.fold[~case.in_test], np.full(len(choosing), -1)])
    best, worst = (
        finetuned(backbone, Case(case.shards, case.ids[twice], labels[twice], fold), replace(CONFIG, epochs=4))
        for labels in (classes, opposite)
    )
    assert best.epoch != worst.epoch
    assert best.epoch_auc > 1 - worst.epoch_auc
    assert best.epoch_auc == roc_auc_score(classes[choosing], best.probabilities)
    assert worst.epoch_auc == roc_auc_score(opposite[choosing], worst.probabilities)


def test_epoch_trains_on_each_image_of_the_other_folds_once_and_test_images_are_seen_once_at_the_end(
    case: Case,
) -> None:
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(32 * 32, 2))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen[self.training].append(images.clone())
            return images.flatten(1) @ self.weight

    finetuned(Watched(), case, spec=UNCHANGED)
    whole = torch.cat(
        [
            batch.views[0]
            for batch in image_batches(case.shards, WholeImage(32, "pad"), mean=0.5, std=0.25, view_executor=EXECUTOR)
        ]
    )

    def rows_of(images: list[torch.Tensor]) -> NDArray[np.int64]:
        distance = torch.cdist(torch.cat(images).flatten(1), whole.flatten(1))
        assert distance.min(dim=1).values.max() < 0.1  # two images are more than 5 apart
        return distance.argmin(dim=1).numpy()

    training, (choosing, validation, test) = (
        np.flatnonzero(case.fold > 1),
        (np.flatnonzero(case.fold == number) for number in (0, 1, -1)),
    )
    for epoch in np.split(rows_of(seen[True]), 2):
        assert np.array_equal(np.sort(epoch), training)
    # the first image in evaluation mode is a blank, which tells the number of features
    assert np.array_equal(rows_of(seen[False][1:]), np.concatenate([choosing, choosing, test, validation]))


def test_batch_larger_than_the_training_part_takes_it_whole(backbone: nn.Module, case: Case) -> None:
    result = finetuned(backbone, case, FinetuneConfig(epochs=1, local_batch=512))
    assert np.isfinite(result.probabilities).all()
    assert result.epoch == 1


def test_training_that_diverges_ends_in_one_line_with_a_way_out(backbone: nn.Module, case: Case) -> None:
    with pytest.raises(RunFailed, match=r"diverged: .* in step \d of 7; lower .*learning_rate=1e\+30"):
        finetuned(backbone, case, FinetuneConfig(epochs=1, learning_rate=1e30, local_batch=8))


def test_damaged_image_ends_it_by_name(backbone: nn.Module, case: Case, shards: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(shards, tmp_path / "damaged"))
    opened = ShardSet([copied])
    row = opened.index(0)[0]
    with (copied / opened.shards[0].name).open("r+b") as tar:
        tar.seek(int(row["image_offset"]) + int(row["image_bytes"]) // 2)
        tar.write(b"damage")
    with pytest.raises(RunFailed, match=r"sample 0 of .* does not match its checksum"):
        finetuned(backbone, case._replace(shards=opened))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", -1, "finetune.epochs=-1 must be at least 0; try 10"),
        ("learning_rate", 0.0, "finetune.learning_rate=0.0 must be positive"),
        ("learning_rate", math.nan, "finetune.learning_rate=nan must be positive and finite"),
        ("weight_decay", -0.1, "finetune.weight_decay=-0.1 must be finite and not negative"),
        ("local_batch", 1, "finetune.local_batch=1 must be at least 2"),
    ],
)
def test_option_out_of_range_is_refused_by_name(key: str, value: Any, words: str) -> None:
    with registered(ProbeConfig), pytest.raises(UserError) as caught:
        replace(CONFIG, **{key: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
