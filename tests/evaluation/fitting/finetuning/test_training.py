import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from evaluation.data.features import Preprocessing
from evaluation.fitting.finetuning.config import FinetuneConfig
from evaluation.fitting.finetuning.images import Inputs, TaskImages, TrainingOrder
from evaluation.fitting.finetuning.network import LinearHead
from evaluation.fitting.finetuning.probe_head import probe_head
from evaluation.fitting.finetuning.targets import Targets
from evaluation.fitting.finetuning.training import Finetuned, finetune
from evaluation.probing.config import ProbeConfig
from evaluation.results.presets import PRESETS
from infra.configuration.options import registered
from infra.errors import RunFailed, UserError
from infra.ranks.devices import has_bf16_matrix_units
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata
from ssl_core.model.encoder import ModelConfig, untrained_backbone
from ssl_core.views.batches import WholeImage, image_batches, training_batches
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
    def images(self) -> TaskImages:
        return TaskImages(self.shards, self.ids, Targets(self.classes[None], exclusive=False), self.fold)

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
    backbone: nn.Module,
    case: Case,
    config: FinetuneConfig = CONFIG,
    spec: ViewSpec = SPEC,
    seed: int = 0,
    head: LinearHead | None = None,
) -> Finetuned:
    inputs = Inputs(spec, INPUT, EXECUTOR, torch.device("cpu"))
    return finetune(backbone, case.images, inputs, config, seed=seed, head=head)


@pytest.fixture(scope="module")
def result(backbone: nn.Module, case: Case) -> Finetuned:
    return finetuned(backbone, case)


def test_network_finds_the_patch_in_new_images_when_it_was_trained_on_labels(case: Case) -> None:
    untrained = untrained_backbone(ModelConfig("resnet18", 16, 8), seed=0)
    result = finetuned(untrained, case, replace(CONFIG, epochs=1))
    assert result.test.shape == (1, 32)
    assert roc_auc_score(case.classes[case.in_test], result.test[0]) > 0.9
    assert roc_auc_score(case.classes[case.fold == 1], result.validation[0]) > 0.9
    assert result.epoch_auc > 0.9


def test_result_is_the_same_for_a_seed_and_another_for_another_and_the_backbone_stays_as_it_was(
    backbone: nn.Module, case: Case, result: Finetuned
) -> None:
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    again, other = (finetuned(backbone, case, seed=seed) for seed in (0, 1))
    assert np.array_equal(again.test[0], result.test[0])
    assert np.array_equal(again.validation, result.validation)
    assert (again.epoch, again.epoch_auc) == (result.epoch, result.epoch_auc)
    assert not np.array_equal(other.test[0], result.test[0])
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not backbone.training


def test_test_labels_play_no_role_when_they_are_flipped(backbone: nn.Module, case: Case, result: Finetuned) -> None:
    flipped = case._replace(classes=np.where(case.in_test, 1 - case.classes, case.classes))
    same = finetuned(backbone, flipped)
    assert np.array_equal(same.test[0], result.test[0])
    assert (same.epoch, same.epoch_auc) == (result.epoch, result.epoch_auc)


def test_images_of_the_test_part_play_no_role_when_most_of_them_are_left_out(
    backbone: nn.Module, case: Case, result: Finetuned
) -> None:
    few = np.flatnonzero(case.in_test)[::8]
    fewer = finetuned(backbone, case.of(~case.in_test | np.isin(np.arange(len(case.ids)), few)))
    assert np.array_equal(fewer.validation, result.validation)
    # The convolutions of a smaller batch may add up in another order.
    np.testing.assert_allclose(fewer.test[0], result.test[0, ::8], atol=1e-4)


def test_predictions_are_in_the_order_of_the_rows(backbone: nn.Module, case: Case, result: Finetuned) -> None:
    turned = np.arange(len(case.ids))[::-1]
    back = finetuned(backbone, Case(case.shards, case.ids[turned], case.classes[turned], case.fold[turned]))
    assert np.array_equal(back.test[0, ::-1], result.test[0])
    assert np.array_equal(back.validation[0, ::-1], result.validation[0])


def test_labels_that_choose_the_epoch_teach_nothing_and_those_for_the_threshold_choose_nothing(
    backbone: nn.Module, case: Case, result: Finetuned
) -> None:
    flipped = case._replace(classes=np.where(case.fold == 0, 1 - case.classes, case.classes))
    honest, misled = (finetuned(backbone, labeled, replace(CONFIG, epochs=1)) for labeled in (case, flipped))
    assert np.array_equal(honest.test[0], misled.test[0])
    assert honest.epoch_auc == pytest.approx(1 - misled.epoch_auc, abs=1e-12)
    flipped = case._replace(classes=np.where(case.fold == 1, 1 - case.classes, case.classes))
    same = finetuned(backbone, flipped)
    assert (same.epoch, same.epoch_auc) == (result.epoch, result.epoch_auc)
    assert np.array_equal(same.validation, result.validation)
    assert np.array_equal(same.test[0], result.test[0])


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
    assert best.epoch_auc == roc_auc_score(classes[choosing], best.test[0])
    assert worst.epoch_auc == roc_auc_score(opposite[choosing], worst.test[0])


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
    assert np.isfinite(result.test[0]).all()
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
    others = np.arange(len(case.ids)) != 0  # an image that is in no part is not even read
    without = finetuned(backbone, case._replace(shards=opened).of(others), replace(CONFIG, epochs=1))
    assert without.test.shape == (1, (case.in_test & others).sum())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", -1, "finetune.epochs=-1 must be at least 0; try 10"),
        ("learning_rate", 0.0, "finetune.learning_rate=0.0 must be positive"),
        ("learning_rate", math.nan, "finetune.learning_rate=nan must be positive and finite"),
        ("weight_decay", -0.1, "finetune.weight_decay=-0.1 must be finite and not negative"),
        ("patience", 0, "finetune.patience=0 must be at least 1; try 3"),
        ("layer_decay", 0.0, "finetune.layer_decay=0.0 must be above 0 and at most 1"),
        ("layer_decay", math.nan, "finetune.layer_decay=nan must be above 0 and at most 1"),
        ("local_batch", 1, "finetune.local_batch=1 must be at least 2"),
    ],
)
def test_option_out_of_range_is_refused_by_name(key: str, value: Any, words: str) -> None:
    with registered(ProbeConfig), pytest.raises(UserError) as caught:
        replace(CONFIG, **{key: value})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def reference(backbone: nn.Module, case: Case, epochs: int, seed: int) -> NDArray[np.float64]:
    """Binary fine-tuning with one rate and a head from zero, written as one loop; the test scores of its last epoch."""
    head = nn.Linear(16, 1)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    model = nn.Sequential(copy.deepcopy(backbone), head).to(memory_format=torch.channels_last)
    matrices, others = ([value for value in model.parameters() if (value.dim() > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    class_of = dict(zip(case.ids.tolist(), case.classes.tolist(), strict=True))
    training = case.classes[case.fold > 1]
    weight = torch.tensor([len(training) / (2 * (training == code).sum()) for code in (0, 1)]).float()
    order = TrainingOrder(case.images, 8, seed)
    steps = order.first_step_after_epoch(epochs - 1)
    cropped = replace(SPEC, crop_area=(0.5, 1.0))
    model.train()
    for batch in training_batches(case.shards, order, cropped, seed=seed, view_executor=EXECUTOR):
        if batch.step == steps:
            break
        images = (batch.views[0] * case.shards.pixel_std + case.shards.pixel_mean - INPUT.mean) / INPUT.std
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16_matrix_units(torch.device("cpu"))):
            features = model[0](images.contiguous(memory_format=torch.channels_last))
        goals = torch.tensor([class_of[sample] for sample in batch.rows["sample"].tolist()])
        logits = head(features.float()).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, goals.float(), weight[goals])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * batch.step / steps))
        optimizer.step()
    chosen = np.flatnonzero(case.in_test)  # in packed order, as the images of the case are
    whole = WholeImage(32, "pad")
    batches = image_batches(
        case.shards, whole, numbers=chosen, local_batch=8, mean=0.5, std=0.25, view_executor=EXECUTOR
    )
    model.eval()
    with torch.inference_mode():
        scores = [model(batch.views[0].contiguous(memory_format=torch.channels_last)).squeeze(1) for batch in batches]
    return expit(torch.cat(scores).double().numpy())


def test_without_new_options_a_network_is_that_of_a_plain_loop_bit_for_bit(backbone: nn.Module, case: Case) -> None:
    plain = finetuned(backbone, case, replace(CONFIG, epochs=1))
    assert np.array_equal(plain.test[0], reference(backbone, case, epochs=1, seed=0))
    assert not np.array_equal(plain.test[0], reference(backbone, case, epochs=1, seed=1))


@pytest.mark.parametrize("threads", [1, 2])
def test_result_is_the_same_again_for_a_number_of_threads(backbone: nn.Module, case: Case, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (finetuned(backbone, case, replace(CONFIG, epochs=1)) for _ in range(2))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(first.test, second.test)
    assert np.array_equal(first.validation, second.validation)


def test_training_ends_when_patience_does_and_takes_the_best_epoch_so_far(
    backbone: nn.Module, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    # What is learned makes the AUC on these worse from epoch to epoch.
    misled = case._replace(classes=np.where(case.fold == 0, 1 - case.classes, case.classes))
    whole, hasty = (finetuned(backbone, misled, replace(CONFIG, epochs=3, patience=patience)) for patience in (None, 1))
    assert whole.trained_epochs == 3
    assert hasty.trained_epochs == 2
    assert hasty.epoch == whole.epoch == 1
    assert np.array_equal(hasty.test, whole.test)
    assert "fine-tuning ends after epoch 2: no better AUC since epoch 1, with patience=1" in capfd.readouterr().err


def test_head_of_a_linear_probe_is_where_training_starts(case: Case) -> None:
    pixels = nn.Sequential(nn.AvgPool2d(8), nn.Flatten()).eval()  # nothing to train but the head
    whole = image_batches(case.shards, WholeImage(32, "pad"), mean=0.5, std=0.25, view_executor=EXECUTOR)
    features = np.concatenate([pixels(batch.views[0]).numpy() for batch in whole])
    preset = replace(PRESETS["rigorous"], c_grid=(1e-5, 0.1))
    head = probe_head(features, case.images, preset)
    unmoved = replace(CONFIG, epochs=1, learning_rate=1e-30)
    started = finetuned(pixels, case, unmoved, head=head)
    training = case.fold > 1
    probes = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, class_weight="balanced", max_iter=1000)).fit(
            features[training], case.classes[training]
        )
        for c in preset.c_grid
    ]
    choosing = case.fold == 0
    aucs = [roc_auc_score(case.classes[choosing], probe.predict_proba(features[choosing])[:, 1]) for probe in probes]
    expected = probes[int(np.argmax(aucs))].predict_proba(features[case.in_test])[:, 1]
    np.testing.assert_allclose(started.test[0], expected, atol=1e-5)
    flipped = case._replace(classes=np.where(np.isin(case.fold, (1, -1)), 1 - case.classes, case.classes))
    assert np.array_equal(probe_head(features, flipped.images, preset).weight, head.weight)
