"""Faults and error rates of a small probe, recomputed from predictions.csv and the stored features."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.results.fault_records import Faults, GroupErrors, QuestionFaults, RelatedImage, read_faults
from evaluation.results.kept_probes import KeptProbes
from sharding.datasets.folder import FolderOptions
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet

MakeRun = Callable[..., Path]
Row = dict[str, str]  # a line of predictions.csv

HEADER = "path,patient,split,sex,age,a,b,label\n"


def write_films(root: Path, *, patients: int = 50, seed: int = 0, patch: int = 10, copies: int = 1) -> None:
    """Two films of each patient, 40 or 300 px; a faint patch tells the sick, and one film is there twice."""
    random = np.random.default_rng(seed)
    root.mkdir(parents=True)
    lines = []
    for patient in range(patients):
        sick, side = patient % 2, 300 if patient % 3 else 40
        split = "test" if patient >= patients * 3 // 5 else "train"
        label = "sick" if sick else "well"
        for film in range(2):
            pixels = random.integers(60, 120, (40, 40)) + random.integers(0, 40)
            pixels[10:24, 8:22] += patch * sick
            name = f"{patient}-{film}.png"
            Image.fromarray(pixels.astype(np.uint8)).resize((side, side)).save(root / name)
            lines.append(f"{name},p{patient},{split},{'FM'[patient // 2 % 2]},{20 + patient},{sick},{film},{label}\n")
    for copy in range(copies):  # of a film of a sick patient, said to be of healthy ones
        (root / f"copy-{copy}.png").write_bytes((root / f"{patients - 1}-0.png").read_bytes())
        lines.append(f"copy-{copy}.png,other-{copy},test,F,50,0,0,well\n")
    (root / "films.csv").write_text(HEADER + "".join(lines))


def pack_films(folder: Path, name: str | None = None, **columns: Any) -> Path:
    options = FolderOptions(csv=Path("films.csv"), patient="patient", sex="sex", age="age", **columns)
    pack(
        PackConfig(
            *("folder", folder / "raw", folder / "shards"),
            name=name,
            shorter_side_px=40,
            workers=1,
            folder=options,
        )
    )
    return folder / "shards"


def probed(run: Path, *shards: Path, **changes: Any) -> Faults:
    config = ProbeConfig(
        run,
        ProbeData([str(folder) for folder in shards]),
        checkpoints="last",
        executor="torchvision",
        search="serial",
        controls=False,
        few_labels=False,
        folds=2,
        bootstrap_resamples=100,
    )
    probe(replace(config, **changes))
    faults = read_faults(run)
    assert faults is not None
    return faults


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_films(folder / "raw")
    return pack_films(folder, split="split", label="label")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, films: Path, make_run: MakeRun) -> Path:
    return make_run(tmp_path_factory.mktemp("faults") / "run", films, steps=(5,))


@pytest.fixture(scope="module")
def faults(run: Path, films: Path) -> Faults:
    return probed(run, films)


def predictions(run: Path, preset: str, question: str = "") -> list[Row]:
    with (run / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["features"].startswith("epoch")]
    return [row for row in rows if (row["preset"], row["question"]) == (preset, question)]


def margin(row: Row) -> float:
    return float(row["score"]) - float(row["threshold"])


def wrong(rows: Sequence[Row], label: str) -> list[Row]:
    """Rows of this right answer that are called the other way, the most confident first."""
    called = [row for row in rows if row["label"] == label and (margin(row) > 0) == (label == "0")]
    return sorted(called, key=lambda row: -abs(margin(row)))


def assert_agree(found: QuestionFaults, rows: Sequence[Row], most: int) -> None:
    """The counts, and the images shown in their order, are those of predictions.csv."""
    positives, negatives = wrong(rows, "0"), wrong(rows, "1")
    assert (found.tested, found.false_positives, found.false_negatives) == (len(rows), len(positives), len(negatives))
    shown = [*positives[:most], *negatives[:most]]
    assert [(fault.image.key, fault.score, fault.threshold, fault.fold) for fault in found.most_confident] == [
        (row["key"], float(row["score"]), float(row["threshold"]), int(row["fold"])) for row in shown
    ]
    assert [str(fault.image.label) for fault in found.most_confident] == [row["label"] for row in shown]
    assert [fault.image.patient for fault in found.most_confident] == [row["patient"] for row in shown]


def test_faults_and_rates_are_those_of_the_predictions(run: Path, faults: Faults) -> None:
    [found] = faults.questions
    rows = predictions(run, "rigorous")
    assert (found.preset, found.positive, found.negative) == ("rigorous", "sick", "well")
    assert min(found.false_positives, found.false_negatives) > 0
    assert_agree(found, rows, most=6)
    assert [(rates.preset, rates.features) for rates in faults.rates] == [
        ("gazda2021", found.features),
        ("rigorous", found.features),
    ]
    for rates in faults.rates:
        assert_counted(rates.groups, predictions(run, rates.preset))


def assert_counted(groups: Sequence[GroupErrors], rows: Sequence[Row]) -> None:
    everything, *others = groups
    assert (everything.attribute, everything.group) == ("", "all")
    sick = [row for row in rows if row["label"] == "1"]
    assert (everything.images, everything.positives) == (len(rows), len(sick))
    assert everything.patients == len({row["patient"] for row in rows})
    assert everything.false_negatives == len(wrong(rows, "1"))
    assert everything.false_positives == len(wrong(rows, "0"))
    assert everything.false_negative_rate is not None
    assert everything.false_negative_rate.value == everything.false_negatives / len(sick)
    by_attribute = {
        attribute: [group.group for group in others if group.attribute == attribute]
        for attribute in ("sex", "age", "shorter side")
    }
    assert by_attribute == {
        "sex": ["F", "M"],
        "age": ["40-59", "60-79"],
        "shorter side": ["under 256 px", "256-511 px"],
    }


def test_neighbors_are_the_nearest_images_that_the_classifier_was_fitted_to(
    run: Path, films: Path, faults: Faults
) -> None:
    [kept] = [item for item in KeptProbes(run).probes if item.preset == "rigorous"]
    values = safetensors.numpy.load_file(run / kept.features_file)["features"].astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    fitted = KeptProbes(run).numbers(kept).rows
    shards = ShardSet([films])
    keys = [shards.key(*map(int, shards.locate(number))) for number in range(shards.samples)]
    for fault in faults.questions[0].most_confident:
        cosines = values[fitted] @ values[keys.index(fault.image.key)]
        nearest = fitted[np.argsort(-cosines, kind="stable")[:3]]
        assert [item.image.key for item in fault.nearest] == [keys[row] for row in nearest]
        assert [item.cosine for item in fault.nearest] == pytest.approx(np.sort(cosines)[::-1][:3], abs=1e-5)
        assert {item.part for item in fault.nearest} == {"development"}
        assert {item.score for item in fault.nearest} == {None}
        assert {item.image.label for item in fault.nearest} <= {0, 1}


def test_images_of_the_patient_and_copies_stand_beside_a_fault_with_their_scores(run: Path, faults: Faults) -> None:
    by_key = {row["key"]: row for row in predictions(run, "rigorous")}
    [found] = faults.questions

    def assert_scored(item: RelatedImage) -> None:
        row = by_key[item.image.key]
        assert (item.part, str(item.image.label)) == ("test", row["label"])
        assert (item.score, item.threshold) == (float(row["score"]), float(row["threshold"]))

    for fault in found.most_confident:
        patient = fault.image.patient
        others = [row["key"] for row in by_key.values() if row["patient"] == patient and row["key"] != fault.image.key]
        assert [item.image.key for item in fault.same_patient] == others
        assert fault.more_of_patient == fault.more_of_picture == 0
        for item in [*fault.same_patient, *fault.same_picture]:
            assert_scored(item)
    [twin] = [fault for fault in found.most_confident if fault.same_picture]  # a copy with the other label
    [copy] = twin.same_picture
    assert copy.image.patient != twin.image.patient
    assert copy.image.label != twin.image.label
    assert copy.cosine == pytest.approx(1)


def test_every_image_of_the_record_is_a_file(run: Path, faults: Faults) -> None:
    for fault in faults.questions[0].most_confident:
        related = [*fault.nearest, *fault.same_patient, *fault.same_picture]
        for pictured in [fault.image, *(item.image for item in related)]:
            with Image.open(run / "pictures" / pictured.file) as image:
                assert image.mode == "L"
                assert max(image.size) <= 320
        assert fault.shorter_side_px in (40, 300)
    maps = [np.asarray(Image.open(run / "pictures" / fault.map)) for fault in faults.questions[0].most_confident]
    assert len({pixels.tobytes() for pixels in maps}) > len(maps) / 2
    assert max(pixels.max() for pixels in maps) > 240


@pytest.mark.slow
def test_cross_validated_faults_are_of_the_classifier_that_did_not_see_the_patient(
    tmp_path: Path, make_run: MakeRun
) -> None:
    write_films(tmp_path / "raw")
    shards = pack_films(tmp_path, label="label")
    crossed = make_run(tmp_path / "run", shards, steps=(5,), splits=())
    [found] = probed(crossed, shards, presets=["rigorous"], allow_overlap=True).questions
    assert_agree(found, predictions(crossed, "rigorous"), most=6)
    assert len({fault.fold for fault in found.most_confident}) > 1
    for fault in found.most_confident:
        assert {item.part for item in fault.nearest} == {"development"}
        assert {item.part for item in fault.same_patient} <= {"test"}  # a patient may have one image
        assert all(item.score is not None for item in fault.nearest)  # each is tested in another round


@pytest.mark.slow
def test_each_label_of_a_task_has_its_own_faults(tmp_path: Path, make_run: MakeRun) -> None:
    write_films(tmp_path / "raw")
    shards = pack_films(tmp_path, split="split", labels=["a", "b"])
    run = make_run(tmp_path / "run", shards, steps=(5,))
    faults = probed(run, shards, presets=["rigorous"])
    assert [found.positive for found in faults.questions] == ["a", "b"]
    for found, rates in zip(faults.questions, faults.rates, strict=True):
        rows = predictions(run, "rigorous", found.positive)
        assert_agree(found, rows, most=6)
        assert rates.dataset == found.dataset
        assert rates.groups[0].false_positives == found.false_positives


@pytest.mark.slow
def test_faults_of_two_joined_sets_are_of_the_tested_set_and_their_neighbors_of_the_fitted_one(
    tmp_path: Path, make_run: MakeRun
) -> None:
    for seed, name in enumerate("ab"):
        write_films(tmp_path / name / "raw", seed=seed, copies=0)
    hospitals = [pack_films(tmp_path / name, name=f"hospital-{name}", label="label") for name in "ab"]
    run = make_run(tmp_path / "run", hospitals[0], steps=(5,), splits=())
    [found] = probed(run, *hospitals, presets=["rigorous"], train_on="hospital-a", allow_overlap=True).questions
    assert_agree(found, predictions(run, "rigorous"), most=6)
    for fault in found.most_confident:
        assert fault.image.dataset == "hospital-b"
        assert {item.image.dataset for item in fault.nearest} == {"hospital-a"}


@pytest.mark.slow
def test_a_probe_without_a_fault_says_so(tmp_path: Path, make_run: MakeRun) -> None:
    write_films(tmp_path / "raw", patch=120, copies=0)
    shards = pack_films(tmp_path, split="split", label="label")
    faults = probed(make_run(tmp_path / "run", shards, steps=(5,)), shards, presets=["rigorous"])
    [found] = faults.questions
    assert (found.false_positives, found.false_negatives, found.most_confident) == (0, 0, [])
    rate = faults.rates[0].groups[0].false_negative_rate
    assert rate is not None
    assert (rate.value, rate.low) == (0, 0)
    assert rate.high is not None
    assert rate.high > 0
