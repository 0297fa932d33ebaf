from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.manifold import trustworthiness
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from evaluation.data.cohort import build_cohorts
from evaluation.data.extractor import Features
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource
from evaluation.data.features import RawPixels
from evaluation.data.labeled_sets import LabeledSet, ProbeData, open_labeled_sets
from evaluation.data.probe_tasks import ProbeTask
from evaluation.data.samples import Samples
from evaluation.inference.neighbors import directions
from evaluation.pictures.embedded_images import embedded_images, spread
from evaluation.pictures.embeddings import embeddings, neighbors_auc_among
from evaluation.results.embedding_records import Embeddings
from evaluation.results.presets import PRESETS
from evaluation.results.tasks import BUILT_IN, Question
from infra.arrays import Float32, Int64
from infra.storage.json_files import encode_json
from tests.support.probe_results import made_dataset

FIRST, LAST = (FeatureSource(f"epoch {epoch}", "checkpoint", RawPixels, epoch, 5 * epoch) for epoch in (1, 2))
PIXELS = FeatureSource("32 x 32 raw pixels", "pixels", RawPixels)


@pytest.fixture(scope="module")
def task(shards: Path) -> ProbeTask:
    """Cell's task on a small set with 32 test images of as many patients."""
    [labeled_set] = open_labeled_sets(ProbeData([str(shards)]))
    task_of_cell = BUILT_IN["cell"][0]
    cohorts = build_cohorts("cell", task_of_cell, labeled_set.samples, PRESETS["rigorous"], seed=0, folds=2)
    return ProbeTask(
        labeled_set, cohorts.questions[0], PRESETS["rigorous"], made_dataset("rigorous"), labeled_set.patients
    )


def features_of(task: ProbeTask, *sources: FeatureSource, size: int = 16) -> Features:
    """Features that tell the classes apart, more so those of later sources."""
    cohort = task.cohort
    matrices = {}
    for number, source in enumerate(sources, start=1):
        values = np.random.default_rng(number).normal(size=(len(task.labeled_set.samples.ids), size))
        values[cohort.rows, 0] += number * cohort.classes
        matrices[source] = {"cell": FeatureMatrix(source.name, values.astype(np.float32))}
    return matrices


def permuted(task: ProbeTask, features: Features, order: Int64) -> tuple[ProbeTask, Features]:
    """The same set as if it had been packed in another order."""
    columns: dict[str, Any] = {}
    for field in fields(Samples):
        values = getattr(task.labeled_set.samples, field.name)
        columns[field.name] = values[order] if isinstance(values, np.ndarray) else [values[row] for row in order]
    assert isinstance(task.labeled_set, LabeledSet)
    labeled_set = replace(task.labeled_set, samples=Samples(**columns))
    cohort = replace(task.cohort, rows=np.argsort(order)[task.cohort.rows])
    matrices = {
        source: {"cell": FeatureMatrix(source.name, of_source["cell"].values[order])}
        for source, of_source in features.items()
    }
    return replace(task, labeled_set=labeled_set, cohort=cohort), matrices


def record(task: ProbeTask, features: Features) -> Embeddings:
    return embeddings(embedded_images([task], features, seed=0))


def test_maps_are_those_of_the_test_images_with_scores_of_the_points_as_recorded(task: ProbeTask) -> None:
    features = features_of(task, PIXELS, FIRST, LAST)
    [of_set] = record(task, features).sets
    samples = task.labeled_set.samples
    rows = [samples.keys.index(key) for key in of_set.keys]
    assert {samples.splits[row] for row in rows} == {"test"}
    assert [samples.labels[row]["PNEUMONIA"] for row in rows] == of_set.positive
    assert (of_set.classes, of_set.test_images, len(rows)) == (("NORMAL", "PNEUMONIA"), 32, 32)
    assert of_set.perplexity == pytest.approx(31 / 3)
    assert [(item.features, item.epoch, item.step) for item in of_set.maps] == [("epoch 1", 1, 5), ("epoch 2", 2, 10)]
    for source, item in zip((FIRST, LAST), of_set.maps, strict=True):
        values = directions(features[source]["cell"].values[rows])
        points = np.stack([item.x, item.y], axis=1)
        assert item.trustworthiness == trustworthiness(values, points)
        assert (points == np.round(points, 2)).all()
    assert of_set.maps[1].knn_auc is not None and of_set.maps[1].knn_auc > 0.7


def test_the_order_of_the_images_and_another_run_change_nothing(task: ProbeTask) -> None:
    features = features_of(task, LAST)
    order = np.random.default_rng(0).permutation(len(task.labeled_set.samples.ids))
    expected = encode_json(record(task, features))
    assert encode_json(record(*permuted(task, features, order))) == expected


def test_too_many_images_are_drawn_by_identity_and_fewer_for_more_maps(
    task: ProbeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MOST_IMAGES", 20), ("MOST_POINTS", 30), ("LEAST_IMAGES", 12)):
        monkeypatch.setattr(f"evaluation.pictures.embedded_images.{name}", value)
    features = features_of(task, FIRST, LAST)
    [one] = embedded_images([task], {LAST: features[LAST]}, seed=0)
    [two] = embedded_images([task], features, seed=0)
    assert (len(one.rows), len(two.rows), two.test_images) == (20, 15, 32)
    assert set(two.keys) < set(one.keys)
    assert two.keys != embedded_images([task], features, seed=1)[0].keys
    reversed_order = np.arange(len(task.labeled_set.samples.ids))[::-1]
    moved, moved_features = permuted(task, features, reversed_order)
    assert embedded_images([moved], moved_features, seed=0)[0].keys == two.keys


def test_of_several_questions_the_one_with_the_most_images_in_its_smaller_class_is_shown(task: ProbeTask) -> None:
    def question(name: str, positives: int, preset: str = "rigorous") -> ProbeTask:
        classes = np.zeros_like(task.cohort.classes)
        classes[np.flatnonzero(task.cohort.in_test[0])[:positives]] = 1
        cohort = replace(task.cohort, classes=classes, question=Question(name))
        label = made_dataset(preset, label=f"cell: {name}", question=name, positive=name)
        return replace(task, cohort=cohort, record=label, preset=PRESETS["rigorous"])

    tasks = [question("rare", 3), question("even", 14), question("common", 30)]
    plain = replace(question("first", 16, "gazda2021"), preset=PRESETS["gazda2021"])
    [chosen] = embedded_images([plain, *tasks], features_of(task, LAST), seed=0)
    assert (chosen.task.record.question, chosen.asked, int(chosen.classes.sum())) == ("even", 3, 14)


def test_what_cannot_be_mapped_or_scored_is_said(task: ProbeTask) -> None:
    features = features_of(task, FIRST, LAST)
    same = {**features, LAST: {"cell": FeatureMatrix("same", np.ones((len(task.labeled_set.samples.ids), 4), "f4"))}}
    first, last = record(task, same).sets[0].maps
    assert (first.missing, last.missing) == ("", "the features of all images are the same")
    assert (last.x, last.trustworthiness, last.knn_auc) == ([], None, None)
    [images] = embedded_images([task], features, seed=0)
    few = replace(
        images,
        rows=images.rows[:7],
        classes=images.classes[:7],
        patients=images.patients[:7],
        features={LAST: images.features[LAST][:7]},
    )
    [item] = embeddings([few]).sets[0].maps
    assert item.missing == "7 images are too few for a map, which needs 12"
    assert embeddings([]).sets == []


def test_neighbors_of_other_patients_score_as_if_each_patient_were_left_out() -> None:
    random = np.random.default_rng(0)
    patients = random.integers(0, 20, 90)
    classes = (patients % 2 ^ (random.random(90) < 0.2)).astype(np.int64)
    values: Float32 = directions((random.normal(size=(90, 8)) + classes[:, None]).astype(np.float32))
    expected = np.empty(90)
    for patient in np.unique(patients):
        left_out = patients == patient
        model = partial(KNeighborsClassifier, 20, weights="distance", metric="cosine")()
        expected[left_out] = model.fit(values[~left_out], classes[~left_out]).predict_proba(values[left_out])[:, 1]
    assert neighbors_auc_among(values, classes, patients) == pytest.approx(roc_auc_score(classes, expected), abs=1e-3)
    assert neighbors_auc_among(values, classes, np.zeros(90, np.int64)) is None
    assert neighbors_auc_among(values, np.zeros(90, np.int64), patients) is None


@pytest.mark.parametrize(
    ("count", "most", "chosen"),
    [(0, 3, []), (1, 3, [0]), (2, 3, [0, 1]), (5, 1, [0]), (4, 2, [0, 3]), (9, 3, [0, 4, 8])],
)
def test_checkpoints_are_spread_from_the_first_to_the_last(count: int, most: int, chosen: list[int]) -> None:
    sources = [FeatureSource(str(number), "checkpoint", RawPixels) for number in range(count)]
    assert [source.name for source in spread(sources, most)] == [str(number) for number in chosen]
