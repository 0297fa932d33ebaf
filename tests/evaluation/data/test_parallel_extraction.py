"""Features extracted at once have the bits of those that one process extracts one after another."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.data.extractor import Extractor, build_extractor
from evaluation.data.feature_matrix import FeatureMatrix
from evaluation.data.feature_sources import FeatureSource, pixels_source, untrained_sources
from evaluation.data.labeled_sets import LabeledSet, ProbeData, open_labeled_sets
from evaluation.data.parallel_extraction import Features, ParallelExtractor, extract_in_processes
from infra.errors import UserError
from ssl_core.model.encoder import ModelConfig, untrained_backbone
from ssl_core.model.published import Input

SOURCES = [
    pixels_source(),
    *untrained_sources(partial(untrained_backbone, ModelConfig("resnet18"), size_px=32), 0, 1),
]


@pytest.fixture
def labeled_sets(shards: Path) -> Sequence[LabeledSet]:
    return open_labeled_sets(ProbeData([str(shards)]))


def extractor_in(folder: Path) -> Extractor:
    images = Input(32, (0.5,), (0.25,))
    return build_extractor(
        folder, images, antialias=False, fit="pad", mirrored=False, view_executor="torchvision", local_batch=16
    )


def require_same(given: Features, expected: Features) -> None:
    for source in SOURCES:
        ours: Mapping[str, FeatureMatrix] = given[source]
        for label, matrix in expected[source].items():
            assert ours[label].identity == matrix.identity
            np.testing.assert_array_equal(ours[label].values, matrix.values)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_processes_store_the_features_of_one_process(labeled_sets: Sequence[LabeledSet], tmp_path: Path) -> None:
    expected = ParallelExtractor(extractor_in(tmp_path / "one")).features(SOURCES, labeled_sets)
    several = extractor_in(tmp_path / "several")
    extract_in_processes(several, SOURCES, labeled_sets, [torch.device("cpu")] * 2)
    assert names_in(tmp_path / "several") == names_in(tmp_path / "one")
    require_same(ParallelExtractor(several).features(SOURCES, labeled_sets), expected)


@pytest.mark.slow
def test_a_ray_cluster_extracts_the_features_of_one_process(
    ray: None, labeled_sets: Sequence[LabeledSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = ParallelExtractor(extractor_in(tmp_path / "one")).features(SOURCES, labeled_sets)
    on_cluster = ParallelExtractor(extractor_in(tmp_path / "cluster"), "auto")
    require_same(on_cluster.features(SOURCES, labeled_sets), expected)
    stored = sorted((tmp_path / "cluster").iterdir())
    written = [path.stat().st_mtime_ns for path in stored]
    stored[0].write_bytes(b"damaged")
    require_same(on_cluster.features(SOURCES, labeled_sets), expected)  # the others are read from disk
    assert [path.stat().st_mtime_ns for path in stored[1:]] == written[1:]
    assert "cannot extract features" not in capsys.readouterr().err


@pytest.mark.slow
def test_what_a_cluster_cannot_read_is_extracted_here(
    ray: None, labeled_sets: Sequence[LabeledSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the file with the weights were on this machine only."""
    source = FeatureSource("other", "compared", partial(_here_only, os.getpid()))
    features = ParallelExtractor(extractor_in(tmp_path), "auto").features([source], labeled_sets)
    assert features[source]["cell"].values.shape[1] == 1024
    assert "cannot extract features (weights.pth does not exist" in capsys.readouterr().err


def _here_only(process: int) -> torch.nn.Module:
    if os.getpid() != process:
        raise UserError("weights.pth does not exist; name a file with weights")
    return SOURCES[0].backbone()
