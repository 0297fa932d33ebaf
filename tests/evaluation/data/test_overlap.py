"""Overlap of pretraining and test images by their pictures, with the real commands."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.results.datasets import SeenPart
from evaluation.results.notes import NO_RUN_NOTE
from evaluation.results.results import Results, read_results
from launch.cli import main as sternum
from sharding.reading.shard_set import ShardSet
from ssl_core.checkpoints.ancestor import Ancestor
from tests.support.manifests import without_fingerprints
from tests.support.pictures import center_square, picture

MakeRun = Callable[..., Path]
PROBE = (
    "--checkpoints=last --controls=false --few_labels=false --presets=[gazda2021] --folds=2 --search=serial "
    "--pictures=false"
)
ALL_SEEN = "pretraining saw 20 test images and 20 test patients (10 of 10 PNEUMONIA, 10 of 10 NORMAL; 20 in"
SIX_SEEN = "pretraining saw 6 test images and 6 test patients (6 of 10 PNEUMONIA, 0 of 10 NORMAL; 6 in collection-a)"


def shard(dataset: str, root: Path, out: Path, *options: str) -> Path:
    arguments = [dataset, f"--root={root}", f"--out={out}", "--shorter_side_px=64", "--workers=1", *options]
    assert sternum(["shard", *arguments, "--allow_missing=true"]) == 0  # the roots have no val
    return out


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in the layout of Cell: 20 images of each class in train, 10 in test."""
    root = tmp_path_factory.mktemp("raw") / "cell"
    for split, first, count in (("train", 0, 20), ("test", 100, 10)):
        for name in ("NORMAL", "PNEUMONIA"):
            (root / split / name).mkdir(parents=True)
            for number in range(first, first + count):
                stem = f"IM-{number:04d}-0001" if name == "NORMAL" else f"person{number}_virus_{number}"
                image = picture(2 * number + (name == "NORMAL"))
                if number in (103, 104, 105):
                    image = center_square(image)
                image.save(root / split / name / f"{stem}.jpeg", quality=95)
    return root


@pytest.fixture(scope="module")
def collection(cell: Path) -> Path:
    """Images of one class under other names: three resized and saved again, three whose center squares Cell holds."""
    root = cell.parent / "collection" / "chest"
    root.mkdir(parents=True)
    for number in range(100, 106):
        picture(2 * number).resize((90, 60)).save(root / f"case-{number}.jpg", quality=60)
    for number in range(20):
        picture(1000 + number).save(root / f"other-{number}.png")
    return root.parent


@pytest.fixture(scope="module")
def cell_shards(cell: Path) -> Path:
    return shard("cell", cell, cell.parent / "cell-shards")


@pytest.fixture(scope="module")
def collection_shards(collection: Path) -> Path:
    return shard("folder", collection, collection.parent / "collection-shards", "--name=collection-a")


def probe(run: Path, labeled: Path, *options: str) -> int:
    return sternum(["probe", str(run), f"--data.shards=[{labeled}]", *PROBE.split(), *options])


def results_of(run: Path) -> Results:
    results = read_results(run)
    assert results is not None
    return results


def test_a_set_that_was_pretrained_on_by_another_reader_is_refused(
    tmp_path: Path, cell: Path, cell_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    again = shard("folder", cell, tmp_path / "again", "--name=everything")
    capsys.readouterr()
    assert probe(make_run(tmp_path / "run", again, (5,), ()), cell_shards) == 2
    error = capsys.readouterr().err
    assert f"dataset 'cell': {ALL_SEEN} everything, test)" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "results.json").exists()


def test_pretraining_on_the_other_split_of_the_same_set_is_no_overlap_unless_the_split_is_ignored(
    tmp_path: Path, cell_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", cell_shards, (5,), ("train",))
    assert probe(run, cell_shards) == 0
    (dataset,) = results_of(run).datasets
    assert (dataset.pretrained_images, dataset.pretrained_patients, dataset.pictures_compared) == (0, 0, True)
    assert probe(run, cell_shards, "--split=ignore") == 2
    refusal = capsys.readouterr().err
    assert "dataset 'cell, split ignored': pretraining saw" in refusal
    assert "--data.splits" not in refusal  # it would test the same images


@pytest.mark.parametrize("packed", ["now", "by an older version"])
def test_copies_of_one_class_are_refused_with_their_counts_by_class(
    packed: str,
    tmp_path: Path,
    cell_shards: Path,
    collection_shards: Path,
    make_run: MakeRun,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if packed == "by an older version":
        collection_shards = shutil.copytree(collection_shards, tmp_path / "old")
        without_fingerprints(collection_shards)
    run = make_run(tmp_path / "run", collection_shards, (5,), ())
    assert probe(run, cell_shards) == 2
    assert f"dataset 'cell': {SIX_SEEN}, which flatters" in capsys.readouterr().err


def test_overlap_that_is_allowed_is_recorded_by_class_and_place(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", collection_shards, (5,), ())
    assert probe(run, cell_shards, "--allow_overlap=true") == 0
    assert f"† cell: {SIX_SEEN}, without labels" in capsys.readouterr().out
    (dataset,) = results_of(run).datasets
    assert dataset.pretrained_parts == [SeenPart("collection-a", positive=6, negative=0)]
    assert sternum(["report", str(run)]) == 0
    assert f"The {SIX_SEEN}, without labels" in (run / "report.html").read_text()


def trained_on(shards: Path, weights: str) -> Ancestor:
    return Ancestor(weights, "0" * 64, 23.0, ShardSet([shards]).identity, [str(shards)])


def test_what_the_runs_before_it_saw_is_refused_and_counted_as_seen(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained_on(cell_shards, "second"), trained_on(collection_shards, "first"))
    run = make_run(tmp_path / "run", cell_shards, (5,), ("train",), ancestors=before[1:])
    assert probe(run, cell_shards) == 2
    assert f"dataset 'cell': {SIX_SEEN[:-1]} (by first))" in capsys.readouterr().err
    run = make_run(tmp_path / "run", cell_shards, (5,), ("train",), ancestors=before)
    assert probe(run, cell_shards) == 2
    assert "pretraining saw 20 test images and 20 test patients" in capsys.readouterr().err


def test_a_probe_says_which_earlier_trainings_it_compares_and_which_it_cannot(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun
) -> None:
    gone = shutil.copytree(collection_shards, tmp_path / "gone")
    train = ShardSet([cell_shards], ["train"])
    before = (
        Ancestor("moco.pth", "1" * 64),
        trained_on(gone, "first"),
        replace(trained_on(gone, "lost"), shards=[]),
        Ancestor("oldest", "2" * 64, 8.0, train.identity, [str(cell_shards)], ["train"]),
    )
    shutil.rmtree(gone)
    run = make_run(tmp_path / "run", cell_shards, (5,), ("train",), ancestors=before)
    assert probe(run, cell_shards) == 0
    results = results_of(run)
    assert results.datasets[0].pretrained_images == 0
    assert results.run is not None
    assert [training.compared for training in results.run.before] == [False, False, False, True]
    notes = [note for note in results.notes if "descends from" in note]
    assert "moco.pth; Sternum cannot know which images these weights have seen" in notes[0]
    assert f"first, trained for 23 epochs on {gone} that are not available; it is unknown" in notes[1]
    assert "lost, trained for 23 epochs on shards that are not available" in notes[2]
    assert f"oldest, trained for 8 epochs on {cell_shards}; test images that it saw there count as seen" in notes[3]
    assert sternum(["report", str(run)]) == 0
    assert "Sternum cannot know which images" in (run / "report.html").read_text()


def test_what_the_runs_behind_other_backbones_saw_is_refused(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", cell_shards, (5,), ("train",))
    other = make_run(tmp_path / "other", collection_shards, (5,), ())
    assert probe(run, cell_shards, f"--compare=[other={other}]") == 2
    assert f"dataset 'cell': {SIX_SEEN[:-1]} (by other))" in capsys.readouterr().err
    assert probe_backbones(tmp_path / "out", cell_shards, f"mine={run},other={other}") == 2
    assert f"dataset 'cell': {SIX_SEEN[:-1]} (by other))" in capsys.readouterr().err


def probe_backbones(out: Path, labeled: Path, backbones: str, *options: str) -> int:
    words = PROBE.replace("--checkpoints=last ", "").split()
    return sternum(
        ["probe", f"--backbones=[{backbones}]", f"--out={out}", f"--data.shards=[{labeled}]", *words, *options]
    )


@pytest.mark.slow
def test_a_probe_without_a_run_says_which_trainings_it_compares(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun
) -> None:
    run = make_run(tmp_path / "run", cell_shards, (5,), ("train",))
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_bytes((run / "checkpoints" / "step-5" / "model.safetensors").read_bytes())
    compared = f"mine, trained for 1 epoch on {cell_shards}; test images that it saw there count as seen"
    seen: list[int | None] = []
    for backbones in (f"mine={run}", f"mine={run},foreign={foreign}@resnet18"):
        assert probe_backbones(tmp_path / "out", cell_shards, backbones) == 0
        results = results_of(tmp_path / "out")
        assert any(note.startswith(compared) for note in results.notes)
        assert NO_RUN_NOTE not in results.notes
        seen.append(results.datasets[0].pretrained_images)
    assert seen == [0, None]  # the training of the foreign weights is unknown
    assert any(note.startswith("foreign: nothing says which images it was trained on") for note in results.notes)


def test_copies_that_an_audit_lists_are_left_out_and_counted(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun
) -> None:
    assert sternum(["audit", str(collection_shards), str(cell_shards), f"--out={tmp_path / 'audit'}"]) == 1
    found = json.loads((tmp_path / "audit" / "audit.json").read_text())
    leaving = [image for group in found["near_identical"] for image in group["images"] if not image["stays"]]
    assert sorted(image["path"] for image in leaving) == [
        f"test/PNEUMONIA/person{number}_virus_{number}.jpeg" for number in range(100, 106)
    ]
    run = make_run(tmp_path / "run", collection_shards, (5,), ())
    assert probe(run, cell_shards, f"--exclude={tmp_path / 'audit' / 'audit.json'}") == 0
    (dataset,) = results_of(run).datasets
    assert dataset.excluded["copy of another image by the list of an audit"] == 6
    assert (dataset.test.positive, dataset.test.negative, dataset.pretrained_images) == (4, 10, 0)


def test_an_audit_of_other_sets_is_refused(
    tmp_path: Path, cell_shards: Path, collection_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sternum(["audit", str(collection_shards), f"--out={tmp_path / 'audit'}"]) == 0
    run = make_run(tmp_path / "run", collection_shards, (5,), ())
    capsys.readouterr()
    assert probe(run, cell_shards, f"--exclude={tmp_path / 'audit' / 'audit.json'}") == 2
    assert "covers collection-a and not the set cell; audit it first: sternum audit" in capsys.readouterr().err


def test_a_labeled_set_with_the_name_of_another_set_is_refused(
    tmp_path: Path, cell: Path, cell_shards: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for number, path in enumerate(sorted(cell.rglob("*.jpeg"))):
        (other / path.relative_to(cell)).parent.mkdir(parents=True, exist_ok=True)
        picture(5000 + number).save(other / path.relative_to(cell))
    run = make_run(tmp_path / "run", shard("cell", other, tmp_path / "other-shards"), (5,), ("train",))
    capsys.readouterr()
    assert probe(run, cell_shards) == 2
    assert "both have the name 'cell', but their keys name different pictures" in capsys.readouterr().err


def test_two_sets_of_one_dataset_are_probed_under_their_names(
    tmp_path: Path, cell: Path, cell_shards: Path, make_run: MakeRun
) -> None:
    named = shard("cell", cell, tmp_path / "named", "--name=cell-b")
    run = make_run(tmp_path / "run", named, (5,), ("train",))
    assert sternum(["probe", str(run), f"--data.shards=[{cell_shards},{named}]", *PROBE.split()]) == 0
    datasets = results_of(run).datasets
    assert [(dataset.label, dataset.name) for dataset in datasets] == [("cell", "cell"), ("cell-b", "cell")]
