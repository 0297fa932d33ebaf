"""Pictures of a real, small probe: what is in the folder, and that it belongs to the results beside it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.embedding_records import read_embeddings
from evaluation.results.picture_records import Attention, read_attention
from tests.evaluation.conftest import MakeRun


def config(run: Path, shards: Path, *, pictures: bool = True) -> ProbeConfig:
    return ProbeConfig(
        run,
        ProbeData([str(shards)]),
        checkpoints="last",
        controls=False,
        few_labels=False,
        search="serial",
        bootstrap_resamples=100,
        pictures=pictures,
    )


@pytest.fixture(scope="module")
def probed(make_run: MakeRun, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = make_run(tmp_path_factory.mktemp("pictures") / "run", shards)
    probe(config(run, shards))
    return run


def attention_of(run: Path) -> Attention:
    record = read_attention(run)
    assert record is not None
    return record


def test_correct_positives_and_negatives_have_maps(probed: Path) -> None:
    record = attention_of(probed)
    assert record.left_out == "" and record.cells == [4, 4]
    decisions = [(item.image.label, item.is_positive) for item in record.maps]
    assert decisions == [(1, True)] * 4 + [(0, False)] * 4
    for item in record.maps:
        assert (item.image.dataset, item.image.split) == ("cell", "test")
        image, map_ = (np.asarray(Image.open(probed / "pictures" / name)) for name in (item.image.file, item.file))
        assert image.shape == map_.shape == (40, 40) and image.std() > 5
        assert map_.max() > 240 and len(np.unique(map_)) > 5


def test_the_features_of_the_test_images_have_a_map(probed: Path) -> None:
    record = read_embeddings(probed)
    assert record is not None
    [of_set] = record.sets
    assert (of_set.dataset, of_set.preset, sum(of_set.positive), len(of_set.keys)) == ("cell", "rigorous", 16, 32)
    assert [(item.features, item.missing, len(item.x)) for item in of_set.maps] == [("epoch 2", "", 32)]


def test_the_folder_is_that_of_the_results_beside_it(probed: Path, shards: Path) -> None:
    before = {path.name: path.read_bytes() for path in (probed / "pictures").iterdir()}
    probe(config(probed, shards))
    assert before == {path.name: path.read_bytes() for path in (probed / "pictures").iterdir()}
    probe(config(probed, shards, pictures=False))
    assert not (probed / "pictures").exists()
