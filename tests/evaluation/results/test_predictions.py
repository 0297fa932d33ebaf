import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.results import predictions as module
from evaluation.results.datasets import TaskKey
from evaluation.results.predictions import FeaturesKey, ImagePredictions, read_predictions, write_predictions
from evaluation.results.results import PredictionsFile
from infra.errors import UserError
from infra.storage.files import sha256_file


def made(seed: int, images: int = 6, *, crossed: bool = False) -> ImagePredictions:
    random = np.random.default_rng(seed)
    patients = random.integers(0, 2**64, images, dtype=np.uint64, endpoint=False)
    return ImagePredictions(
        crossed=crossed,
        folds=np.arange(images) % 2 + 1 if crossed else np.ones(images, np.int64),
        keys=[f"image-{number}" for number in range(images)],
        patients=patients,
        groups=np.minimum(patients, patients[::-1]),
        labels=np.arange(images) % 2,
        scores=random.random(images),
        thresholds=np.full(images, 1 / 3),
    )


def key(features: str, draw: int = 1) -> FeaturesKey:
    return FeaturesKey(TaskKey("cell, balanced by view", "rigorous"), "", features, draw)


def same(one: ImagePredictions, other: ImagePredictions) -> bool:
    return all(
        bool(np.all(np.asarray(ours) == np.asarray(theirs)))
        for ours, theirs in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_what_is_written_is_read_to_the_last_digit(tmp_path: Path) -> None:
    written = {key("epoch 2"): made(0), key("untrained backbone", 2): made(1, crossed=True), key("other"): made(2)}
    file = write_predictions(tmp_path, written.items())
    assert (file.name, file.rows) == ("predictions.csv", 18)
    read = read_predictions(tmp_path, file, {key("epoch 2"), key("untrained backbone", 2), key("absent")})
    assert list(read) == list(written)[:2]
    assert all(same(read[name], written[name]) for name in read)
    with (tmp_path / "predictions.csv").open(newline="") as text:
        first = next(csv.DictReader(text))
    assert (first["set"], first["part"], first["fold"], first["label"]) == ("cell, balanced by view", "test", "1", "0")
    assert int(first["patient"], 16) == made(0).patients[0]
    assert float(first["score"]) == made(0).scores[0]


def test_set_and_question_have_columns_of_their_own(tmp_path: Path) -> None:
    asked = [FeaturesKey(TaskKey(f"mine: {name}", "rigorous"), name, "epoch 2", 1) for name in ("Edema", "Mass: left")]
    file = write_predictions(tmp_path, [(item, made(number)) for number, item in enumerate(asked)])
    with (tmp_path / "predictions.csv").open(newline="") as text:
        named = {(line["set"], line["question"]) for line in csv.DictReader(text)}
    assert named == {("mine", "Edema"), ("mine", "Mass: left")}
    assert same(read_predictions(tmp_path, file, {asked[1]})[asked[1]], made(1))


def test_many_lines_are_compressed_and_replace_the_plain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_predictions(tmp_path, [(key("epoch 2"), made(0))])
    content = (tmp_path / "predictions.csv").read_bytes()
    monkeypatch.setattr(module, "_MOST_PLAIN_ROWS", 5)
    file = write_predictions(tmp_path, [(key("epoch 2"), made(0))])
    assert file == write_predictions(tmp_path, [(key("epoch 2"), made(0))])  # the same bytes again
    assert [path.name for path in tmp_path.iterdir()] == [file.name] == ["predictions.csv.gz"]
    assert gzip.decompress((tmp_path / file.name).read_bytes()) == content
    assert same(read_predictions(tmp_path, file, {key("epoch 2")})[key("epoch 2")], made(0))
    with pytest.raises(UserError, match=r"predictions\.csv does not exist, but .* probe the run again"):
        read_predictions(tmp_path, plain, {key("epoch 2")})


DAMAGES: dict[str, Callable[[str], str]] = {
    "a line too many": lambda text: text + text.splitlines(keepends=True)[1],
    "a cell too few": lambda text: text.replace(",image-0,", ",", 1),
    "another column": lambda text: text.replace("threshold", "thresholds", 1),
    "a label": lambda text: text.replace(",0,0.", ",2,0.", 1),
    "a score": lambda text: text.replace(",0,0.", ",0,nan", 1),
    "no number": lambda text: text.replace(",0,0.", ",0,x", 1),
    "a large patient": lambda text: text.replace(",image-0,", ",image-0,f", 1),
    "a quote": lambda text: text.replace(",image-0,", ',image"-0,"', 1),
    "nothing": lambda text: "",
    "no text": lambda text: "\x00",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_sternum_did_not_write_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    file = write_predictions(tmp_path, [(key("epoch 2"), made(0))])
    path = tmp_path / file.name
    path.write_text(DAMAGES[damage](path.read_text()))
    with pytest.raises(UserError, match=r"is not the file that .*results\.json belongs to; probe the run again"):
        read_predictions(tmp_path, file, {key("epoch 2")})
    forged = PredictionsFile(file.name, file.rows, sha256_file(path))  # by a stranger, with the right checksum
    with pytest.raises(UserError, match=r"predictions\.csv cannot be read \(.*\); probe the run again") as caught:
        read_predictions(tmp_path, forged, {key("epoch 2")})
    assert "\n" not in str(caught.value)


def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "secret").write_text(json.dumps("x"))
    with pytest.raises(UserError, match=r"names its predictions '\.\./secret'"):
        read_predictions(tmp_path / "run", PredictionsFile("../secret", 1, "0"), set())
