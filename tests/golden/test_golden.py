"""Files that the code of commit 0975d78 wrote; make.py says how. The present code must read all of them."""

import json
import shutil
import tarfile
from pathlib import Path

import msgspec
import pytest
import torch
import yaml

from evaluation.results.results import read_results
from evaluation.results.scores import Scores
from evaluation.results.selection import read_selection
from infra.configuration import config as configuration
from infra.monitoring.metrics import read_metrics
from infra.monitoring.status import read_status
from launch.cli import main as sternum
from sharding.format.manifest import MANIFEST_NAME
from sharding.packing import encoded, pack
from sharding.packing.verify import verify
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_batches
from ssl_core.checkpoints.checkpoint import find_checkpoints, find_damage
from ssl_core.checkpoints.tensors import load_backbone, load_state
from ssl_core.pretraining.config import PretrainConfig

RUN = Path("run")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    with tarfile.open(Path(__file__).with_name("golden.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(autouse=True)
def golden(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder with the golden files the current one: they name each other by relative paths."""
    monkeypatch.chdir(unpacked)
    return unpacked


@pytest.mark.parametrize(("dataset", "splits"), [("chexpert", ["train", "val"]), ("cell", ["train", "val", "test"])])
def test_every_sample_of_old_shards_is_read(dataset: str, splits: list[str]) -> None:
    folder = Path("shards", dataset)
    assert verify(folder, workers=1) == []
    shards = ShardSet([str(folder)], splits)
    read = sum(len(batch.encoded) for batch in packed_batches(shards, local_batch=4))
    assert read == json.loads((folder / MANIFEST_NAME).read_text())["samples"] == shards.samples


def test_an_unfinished_packing_ends_with_the_bytes_of_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by = json.loads(Path("partial/.partial/job.json").read_text())["made_by"]
    same_encoder = encoded.made_by().startswith(made_by)  # newer versions also name the decoder of DICOM files
    # Another Pillow may compress differently, so packing refuses to go on; this test is about the files.
    monkeypatch.setattr(pack, "made_by", lambda: made_by)
    out = tmp_path / "out"
    shutil.copytree("partial", out)
    assert len(list(out.glob("*.tar"))) == 2
    options = ["--shorter_side_px=48", "--shard_samples=4", "--workers=1"]
    assert sternum(["shard", "chexpert", "--root=raw/chexpert", f"--out={out}", *options]) == 0
    whole = Path("shards/chexpert")
    added = {path.name for path in out.glob("*.fingerprints.npy")}  # of the shards that this version packs
    assert added and {path.name for path in out.iterdir()} == added | {path.name for path in whole.iterdir()}
    assert verify(out, workers=1) == []
    if same_encoder:
        packed = [path for path in whole.iterdir() if path.name != MANIFEST_NAME]
        assert all((out / path.name).read_bytes() == path.read_bytes() for path in packed)


def test_an_old_checkpoint_is_whole_and_its_backbone_loads() -> None:
    [checkpoint] = find_checkpoints(RUN)
    assert find_damage(checkpoint) is None
    assert (checkpoint.step, checkpoint.state.backbone, checkpoint.state.world_size) == (2, "resnet18", 1)
    model, optimizer = load_state(checkpoint)
    assert {name.rpartition("/")[2] for name in optimizer} == {"exp_avg", "exp_avg_sq", "step"}
    backbone = load_backbone(checkpoint)
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, model[f"backbone.{name}"])


def test_an_old_configuration_is_read_whole() -> None:
    config = configuration.load(PretrainConfig, RUN / "config.yaml", command="pretrain")
    assert holds(yaml.safe_load(configuration.to_yaml(config)), yaml.safe_load((RUN / "config.yaml").read_text()))


def test_an_old_run_goes_on_with_its_own_configuration_and_keeps_its_keys(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    status = read_status(run)
    assert status is not None and status.state == "paused"
    samples = (run / "samples/rank-0.jsonl").read_bytes()
    assert sternum(["pretrain", str(run), f"--config={run / 'config.yaml'}", "--train.max_steps=3"]) == 0
    assert [checkpoint.step for checkpoint in find_checkpoints(run)] == [2, 3]
    first, second, third = read_metrics(run)
    assert first.keys() == second.keys() < third.keys()  # old tags are read by their new names
    lines = (run / "samples/rank-0.jsonl").read_bytes()
    assert lines.startswith(samples)
    assert [json.loads(line)["step"] for line in lines.splitlines()] == [0, 1, 2]
    assert len({tuple(json.loads(line)) for line in lines.splitlines()}) == 1


def test_old_results_and_an_old_selection_are_read_without_loss() -> None:
    for name, read in (("results.json", read_results(RUN)), ("selection.json", read_selection(RUN))):
        assert holds(msgspec.to_builtins(read), json.loads((RUN / name).read_text()))


def holds(read: object, written: object) -> bool:
    """Return whether everything that was written was read; newer versions have more fields."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(key in read and holds(read[key], value) for key, value in written.items())
    if isinstance(written, list):
        return isinstance(read, list) and len(read) == len(written) and all(map(holds, read, written))
    return read == written


@pytest.fixture
def results_only(tmp_path: Path) -> Path:
    """Return a copy of the run without weights."""
    run = tmp_path / "run"
    shutil.copytree(RUN, run, ignore=shutil.ignore_patterns("*.safetensors"))
    return run


@pytest.mark.parametrize("preset", ["gazda2021", "rigorous"])
def test_old_results_become_a_table(preset: str, results_only: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sternum(["table", str(results_only), f"--preset={preset}"]) == 0
    printed = capsys.readouterr().out
    assert "ours, epoch 1" in printed
    assert (results_only / "table3.md").read_text() == printed


def test_old_results_and_curves_become_a_report(results_only: Path) -> None:
    results = read_results(RUN)
    assert results is not None
    assert sternum(["report", str(results_only)]) == 0
    page = (results_only / "report.html").read_text()
    assert all(row.features in page for row in results.rows)


@pytest.mark.slow
def test_a_probe_of_old_shards_gives_the_old_figures(results_only: Path) -> None:
    before = read_results(RUN)
    options = (
        "--data.shards=[shards/cell] --checkpoints=[] --few_labels=false --bootstrap_resamples=100 --search=serial "
        "--presets=[gazda2021] --probe_fit=square --untrained_seeds=1"  # what the old version did
    )
    assert sternum(["probe", str(results_only), *options.split()]) == 0
    now = read_results(results_only)
    assert before is not None and now is not None
    kinds = ("pixels", "border")  # these need no backbone, whose last bits depend on the machine
    old, new = (
        {row.kind: values_of(row.scores) for row in results.rows_of(results.datasets[0]) if row.kind in kinds}
        for results in (before, now)
    )
    assert len(old) == 2
    assert list(new) == list(old)
    assert all(new[key].items() >= old[key].items() for key in old)


def values_of(scores: Scores) -> dict[str, float]:
    """Return the scores without their intervals, whose method changed with version 3 of the results."""
    return {name: estimate.value for name, estimate in vars(scores).items() if estimate is not None}
