"""The Python interface gives what the commands give, and its documented example runs."""

import re
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sternum
from evaluation.inference.config import PredictConfig
from evaluation.inference.predict import predict
from infra.arrays import UInt8
from infra.errors import UserError
from sharding.reading.shard_set import ShardSet
from tests.evaluation.inference.test_embed import stored_features

DOCS = Path(__file__).parents[3] / "docs" / "commands.md"


def packed_images(shards: Path) -> list[UInt8]:
    packed = ShardSet([shards])
    places = (map(int, packed.locate(number)) for number in range(packed.samples))
    contents = (packed.read(shard, row).tobytes() for shard, row in places)
    return [np.array(Image.open(BytesIO(content))) for content in contents]


@pytest.fixture
def torchvision_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor that made the stored features; DALI's differ in the sixth digit."""
    monkeypatch.setattr("ssl_core.views.has_extra", lambda _: False)


@pytest.mark.usefixtures("torchvision_only")
def test_arrays_give_the_features_and_scores_of_the_packed_images(probed: Path, shards: Path) -> None:
    images = packed_images(shards)
    backbone = sternum.load_backbone(probed)
    assert backbone.size_px == 32
    features = backbone.embed(np.stack(images))
    np.testing.assert_allclose(features, stored_features(probed), atol=1e-6)
    probe = sternum.load_probe(probed, "cell")
    [expected] = predict(PredictConfig([str(shards)], f"{probed}:cell")).answers
    assert probe.classes == ["PNEUMONIA"]
    for answer in (probe.score(images)["PNEUMONIA"], probe.score_features(features)["PNEUMONIA"]):
        assert answer.score == pytest.approx(expected.score, abs=1e-6)
        assert answer.threshold == expected.threshold
    likeness = probe.likeness(features)
    assert likeness is not None and likeness.distance.shape == (116,)


def test_images_of_any_sizes_are_one_list_and_large_ones_are_reduced_as_packing_does(probed: Path) -> None:
    backbone = sternum.load_backbone(probed)
    ramp = np.linspace(0, 255, 200 * 300).reshape(200, 300).astype(np.uint8)
    reduced = np.array(Image.fromarray(ramp).resize((60, 40), Image.Resampling.LANCZOS))
    features = backbone.embed([ramp, reduced])
    np.testing.assert_allclose(features[0], features[1], atol=1e-5)
    assert backbone.embed([]).shape == (0, 0)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)])
def test_array_that_is_no_gray_image_is_refused(probed: Path, image: UInt8) -> None:
    with pytest.raises(UserError, match=r"image 1 is .* but must be uint8 of shape \(height, width\)"):
        sternum.load_backbone(probed).embed([np.zeros((4, 4), np.uint8), image])


def test_features_of_another_backbone_are_refused(probed: Path) -> None:
    with pytest.raises(UserError, match=r"have 3 numbers, but the probe of cell .* was fitted to 512"):
        sternum.load_probe(probed, "cell").score_features(np.zeros((2, 3), np.float32))


def test_documented_example_runs(probed: Path, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(import sternum.*?)```", DOCS.read_text(), re.S)
    assert example is not None
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(probed)
    for number, path in enumerate(sorted((raw / "test" / "NORMAL").iterdir())[:2]):
        shutil.copy(path, tmp_path / f"film-{number}.jpeg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example[1], names)
    assert np.shape(names["features"]) == (2, 512)
