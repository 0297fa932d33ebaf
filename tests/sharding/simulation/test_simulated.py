import csv
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from sharding.simulation.datasets import write_cell, write_chexpert
from sharding.simulation.exposure import radiograph
from sharding.simulation.phantom import draw_anatomy, draw_opacities, frontal, lateral

HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """110 patients: enough for the two worker processes."""
    root = tmp_path_factory.mktemp("simulated") / "chexpert"
    write_chexpert(root, patients=110, seed=3, size_px=32)
    return root


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("simulated") / "cell"
    write_cell(root, {"train": 90, "val": 20, "test": 41}, seed=3, size_px=32)
    return root


def test_chexpert_rows_and_files_are_one_to_one(chexpert: Path) -> None:
    named = set()
    for split in ("train", "valid"):
        assert (chexpert / f"{split}.csv").read_text().splitlines()[0] == HEADER
        for row in rows_of(chexpert / f"{split}.csv"):
            pattern = rf"CheXpert-v1\.0-small/({split}/patient\d{{5}}/study\d/view\d_(frontal|lateral)\.jpg)"
            match = re.fullmatch(pattern, row["Path"])
            assert match
            assert row["Frontal/Lateral"].lower() == match[2]
            assert row["AP/PA"] in (("AP", "PA") if match[2] == "frontal" else ("",))
            assert row["Sex"] in ("Female", "Male")
            assert 18 <= int(row["Age"]) <= 90
            with Image.open(chexpert / match[1]) as image:
                assert (image.mode, min(image.size)) == ("L", 32)
            named.add(match[1])
    assert named == {path.relative_to(chexpert).as_posix() for path in chexpert.rglob("*.jpg")}


def test_chexpert_labels_agree_with_each_other(chexpert: Path) -> None:
    for split in ("train", "valid"):
        for row in rows_of(chexpert / f"{split}.csv"):
            labels = {name: row[name] for name in HEADER.split(",")[5:]}
            assert set(labels.values()) <= ({"1.0", "0.0", "-1.0", ""} if split == "train" else {"1.0", "0.0"})
            findings = {name for name, value in labels.items() if value in ("1.0", "-1.0")} - {"Support Devices"}
            assert (labels["No Finding"] == "1.0") == (findings == {"No Finding"})
            if labels["Pneumonia"] == "1.0" or labels["Consolidation"] == "1.0":
                assert labels["Lung Opacity"] == "1.0"
            if labels["Lung Opacity"] == "1.0":
                assert labels["Pneumonia"] in (("1.0",) if split == "valid" else ("1.0", "-1.0", ""))


def test_chexpert_has_two_images_a_patient_of_which_85_percent_are_frontal(chexpert: Path) -> None:
    rows = rows_of(chexpert / "train.csv") + rows_of(chexpert / "valid.csv")
    assert 1.7 < len(rows) / 110 < 2.4
    assert 0.8 < np.mean([row["Frontal/Lateral"] == "Frontal" for row in rows]) < 0.9
    assert {row["Pneumonia"] for row in rows} == {"1.0", "0.0", "-1.0", ""}


def test_files_are_the_same_when_fewer_patients_are_drawn_in_one_process(chexpert: Path, tmp_path: Path) -> None:
    write_chexpert(tmp_path / "small", patients=12, seed=3, size_px=32)
    many, few = contents(chexpert), contents(tmp_path / "small")
    images = [name for name in few if name.endswith(".jpg")]
    assert len(images) > 12
    assert all(few[name] == many[name] for name in images)


def test_files_differ_when_the_seed_differs(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_cell(tmp_path / str(seed), {"train": 8}, seed, size_px=32)
    first, second = (
        {data for name, data in contents(tmp_path / seed).items() if name.endswith(".jpeg")} for seed in "12"
    )
    assert len(first) == len(second) == 8
    assert not first & second


def test_cell_names_and_counts_are_as_asked(cell: Path) -> None:
    for split, count in (("train", 90), ("val", 20), ("test", 41)):
        normal = [path.name for path in (cell / split / "NORMAL").iterdir()]
        sick = [path.name for path in (cell / split / "PNEUMONIA").iterdir()]
        assert (len(normal), len(sick)) == (count - count // 2, count // 2)
        assert all(re.fullmatch(r"IM-\d{4}-\d{4}\.jpeg", name) for name in normal)
        assert all(re.fullmatch(r"person\d+_(bacteria|virus)_\d+\.jpeg", name) for name in sick)


def test_cell_patients_are_in_one_split(cell: Path) -> None:
    splits = defaultdict(set)
    images = list(cell.rglob("*.jpeg"))
    for path in images:
        splits[re.split(r"-\d{4}\.|_", path.name)[0]].add(path.parts[-3])
    assert len(splits) < len(images)  # some patients have several images
    assert all(len(where) == 1 for where in splits.values())


def test_sets_say_that_they_are_simulated(chexpert: Path, cell: Path) -> None:
    assert (chexpert / "SIMULATED.txt").read_text() == (cell / "SIMULATED.txt").read_text() != ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patients": 1}, "patients=1"),
        ({"size_px": 16}, "size_px=16"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_chexpert_is_refused_when_a_number_is_out_of_range(
    arguments: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_chexpert(tmp_path / "set", **{"patients": 2, "seed": 0, "size_px": 32} | arguments)
    assert not (tmp_path / "set").exists()


def test_cell_is_refused_when_a_split_is_unknown_or_too_small(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="valid"):
        write_cell(tmp_path / "set", {"valid": 8}, seed=0)
    with pytest.raises(UserError, match="val"):
        write_cell(tmp_path / "set", {"train": 8, "val": 1}, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_writers_are_refused_when_the_folder_holds_something(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="is not empty"):
        write_chexpert(tmp_path, patients=2, seed=0)
    with pytest.raises(UserError, match="is not empty"):
        write_cell(tmp_path, {"train": 2}, seed=0)
    with pytest.raises(UserError, match="is a file"):
        write_cell(tmp_path / "mine.txt", {"train": 2}, seed=0)
    assert contents(tmp_path) == {"mine.txt": b"keep me"}


def test_anatomy_follows_sex_and_age() -> None:
    people = [draw_anatomy(5, "test", n) for n in range(400)]
    width = {sex: np.mean([person.width for person in people if person.sex == sex]) for sex in ("Female", "Male")}
    assert width["Male"] > width["Female"] + 0.02
    ages = np.array([person.age for person in people])
    assert np.corrcoef(ages, [person.heart_ratio for person in people])[0, 1] > 0.1
    assert np.corrcoef(ages, [person.rib_strength for person in people])[0, 1] < -0.1


@settings(max_examples=25)
@given(patient=st.integers(0, 2**40), viral=st.booleans(), seen_from=st.sampled_from([frontal, lateral]))
def test_opacities_add_density_only_where_there_is_lung(
    patient: int, viral: bool, seen_from: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> None:
    y, x = np.mgrid[-1:1:64j, -1:1:64j].astype(np.float32)
    texture = np.zeros_like(x)
    opacities = draw_opacities(0, "test", patient, 1, viral)
    anatomy = draw_anatomy(0, "test", patient)
    solid, lung, opacity = seen_from(anatomy, 0.0, x, y, opacities, texture)
    assert np.all(opacity >= 0)
    assert np.all(opacity[lung == 0] == 0)
    assert opacity.max() > 0.01
    assert 0.05 < np.mean(lung > 0) < 0.7
    assert np.isfinite(solid).all()


def test_two_images_of_a_patient_are_alike_and_yet_two(tmp_path: Path) -> None:
    def image(patient: int, number: int) -> np.ndarray:
        anatomy = draw_anatomy(0, "test", patient)
        return radiograph(0, "test", patient, number, anatomy, (), "PA", 0, 64)

    assert np.array_equal(image(1, 1), image(1, 1))
    assert image(1, 1).shape != image(1, 2).shape or not np.array_equal(image(1, 1), image(1, 2))
    assert image(1, 1).std() > 10
