"""Exports of runs: what others load from them, without Sternum, and what cannot be exported."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.report.export import export
from evaluation.results.results import write_results
from infra.arrays import Float32
from infra.configuration import config as configuration
from infra.errors import UserError
from launch.cli import main
from sharding.packing.pack import PackConfig, pack
from sharding.reading.data_config import DataConfig
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata
from ssl_core.checkpoints.ancestor import Ancestor
from ssl_core.checkpoints.checkpoint import MODEL, CheckpointState, find_checkpoints
from ssl_core.checkpoints.export.folder import open_export
from ssl_core.checkpoints.tensors import load_backbone, load_state, save_checkpoint
from ssl_core.model.encoder import ModelConfig, build_encoder
from ssl_core.pretraining.config import PretrainConfig
from ssl_core.views.batches import WholeImage, image_batches
from ssl_core.views.spec import ViewSpec
from tests.support.cards import PATHS, checked, python_of, run_without_sternum
from tests.support.disk_faults import NoDisk, small_disk
from tests.support.pictures import picture
from tests.support.probe_results import made_results
from tests.support.tiny_resnet import TINY_RESNET

MakeRun = Callable[..., Path]

# Square, wide, tall, and two that are reduced when they are packed, one of them after the JPEG decoder has halved it.
SIZES = {"square": (200, 200), "wide": (300, 170), "tall": (170, 300), "large": (500, 400), "larger": (1400, 1100)}


def features_by_path(run: Path, shards: Path, size_px: int) -> dict[str, Float32]:
    """The features (D,) of each packed image by the path of its raw file, as a probe extracts them."""
    packed = ShardSet([shards])
    paths = [str(record["path"]) for record in packed_metadata(packed)]
    batches = image_batches(packed, WholeImage(size_px, "pad"), mean=0.5, std=0.25, view_executor="torchvision")
    backbone = load_backbone(find_checkpoints(run)[-1])
    with torch.inference_mode():
        features = torch.cat([backbone(batch.views[0]) for batch in batches])
    return dict(zip(paths, features.numpy(), strict=True))


def disturb(module: nn.Module) -> None:
    """Give each weight of a tensor whose weights are all equal a value of its own: a swap of two would not show."""
    with torch.no_grad():
        for weights in (*module.parameters(), *module.buffers()):
            if weights.is_floating_point() and torch.all(weights == weights.flatten()[0]):
                weights.add_(0.1 * torch.rand(weights.shape))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw images of several sizes, and their shards."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "raw" / "chest").mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        picture(number, *size).save(folder / "raw" / "chest" / f"{name}.jpeg", quality=95)
    pack(PackConfig("folder", folder / "raw", folder / "shards", workers=1))
    return folder


def made_run(run: Path, shards: Path, network: str, size_px: int) -> Path:
    """A run of any network with one checkpoint."""
    torch.manual_seed(0)
    data = DataConfig([str(shards)], global_batch=16, lanes=4, shuffle_window=16)
    config = PretrainConfig(run, data, ViewSpec(size_px=size_px), ModelConfig(network, 16, 8))
    configuration.save(config, run / "config.yaml")
    encoder = build_encoder(config.model, 0, size_px)
    disturb(encoder)
    settings = {"views.size_px": size_px}
    ancestors = [
        Ancestor("/home/anna/first/checkpoints/step-5/model.safetensors", "0" * 64, 2.0, "1" * 64, ["/home/anna/x"])
    ]
    state = CheckpointState(
        3, 0.5, network, ShardSet([shards]).identity, 0.5, 0.25, 1, "-", "-", config=settings, ancestors=ancestors
    )
    save_checkpoint(run, state, encoder.state_dict(), {})
    return run


def test_the_python_of_a_card_gives_the_features_of_a_probe(
    run: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exports" / "first"
    assert main(["export", str(run), f"--out={out}", "--onnx=false"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    blocks = python_of((out / "README.md").read_text())
    assert list(blocks) == ["From an image file to the input", "torchvision", "timm", "transformers"]
    path, expected = next(iter(features_by_path(run, shards, 32).items()))
    names: dict[str, Any] = {}
    exec(blocks.pop("From an image file to the input").replace(PATHS, repr([str(shards.parent / "raw" / path)])), names)
    names["folder"] = str(out)
    for library in ("torchvision", "timm"):
        exec(blocks[library], names)
        np.testing.assert_allclose(names["features"].numpy()[0], expected, rtol=1e-4, atol=1e-4)
    card = (out / "README.md").read_text()
    for words in ("This checkpoint has not been probed", "not a medical device", ShardSet([shards]).identity):
        assert words in card, words
    used = [record for record in packed_metadata(ShardSet([shards])) if record["split"] == "train"]
    patients = len({record["patient"] for record in used})
    assert re.search(rf"\| cell +\| [0-9a-f]{{64}} +\| +{len(used)} \| +{patients} \|", card)
    assert str(shards) not in card  # it may name a hospital or a patient
    assert not list(out.parent.glob(".*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("network", "channels"),
    [
        ("resnet18", 1),
        ("resnet18", 3),
        ("wide_resnet50_2", 1),
        ("densenet121", 1),
        ("convnext_tiny", 3),
        ("vit_b_16", 1),
        ("vit_b_16", 3),
        ("timm/test_vit", 1),
        ("timm/test_vit", 3),
    ],
)
def test_others_get_the_features_of_a_probe_without_sternum(
    network: str, channels: int, pictures: Path, tmp_path: Path
) -> None:
    shards, out = pictures / "shards", tmp_path / "out"
    run = made_run(tmp_path / "run", shards, network, size_px=64)
    assert main(["export", str(run), f"--out={out}", f"--channels={channels}"]) == 0
    expected = features_by_path(run, shards, 64)
    np.save(out / "expected.npy", np.stack(list(expected.values())))
    for path in expected:
        shutil.copy(pictures / "raw" / path, out)
    blocks = python_of((out / "README.md").read_text())
    libraries = ["torchvision", "timm", "transformers", "onnxruntime"]
    assert list(blocks)[1:] == libraries[network.startswith("timm/") :]
    first, *others = blocks.values()
    names = [Path(path).name for path in expected]
    run_without_sternum(out, [first.replace(PATHS, repr(names)), *map(checked, others)])


def test_a_card_quotes_the_scores_of_its_checkpoint_beside_the_controls(shards: Path, tmp_path: Path) -> None:
    run, results = made_run(tmp_path / "run", shards, TINY_RESNET, 32), made_results()
    [step] = [checkpoint.step for checkpoint in find_checkpoints(run)]
    last = max(row.step or 0 for row in results.rows)
    rows = [replace(row, step=step) if row.step == last else row for row in results.rows]
    datasets = [replace(dataset, excluded={"<script>": 1}) for dataset in results.datasets]
    write_results(run, replace(results, rows=rows, datasets=datasets))
    export(run, tmp_path / "out", None, 1, onnx=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "5.6 points above the 32 x 32 raw pixels (90.7 %; difference +3.4 to +8.0)" in card
    for words in ("development 5232 images of 2790 patients", "0123456789abcdef", "| untrained backbone", "\\<script>"):
        assert words in card, words
    assert "<script>" not in card.replace("\\<script>", "")


def test_a_card_says_when_the_images_used_are_unknown(shards: Path, tmp_path: Path) -> None:
    for name in ("gone", "other"):
        run = made_run(tmp_path / name, shards, TINY_RESNET, 32)
        config = configuration.load(PretrainConfig, run / "config.yaml", command="pretrain")
        data = {"gone": DataConfig([str(tmp_path)]), "other": replace(config.data, splits=["test"])}[name]
        configuration.save(replace(config, data=data), run / "config.yaml")
        export(run, tmp_path / "out", None, 1, onnx=False)
        card = (tmp_path / "out" / "README.md").read_text()
        why = {"gone": "not on the machine that wrote this card", "other": "not as it was when the run read it"}[name]
        assert re.search(rf"\| set 1, {why} +\| +\| +unknown \| +unknown \|", card)
        shutil.rmtree(tmp_path / "out")


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(
    run: Path, shards: Path, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged, full = tmp_path / "damaged", tmp_path / "full"
    shutil.copytree(run, damaged)
    weights = find_checkpoints(damaged)[-1].path / MODEL
    weights.write_bytes(weights.read_bytes()[:-1])
    diverged = made_run(tmp_path / "diverged", shards, TINY_RESNET, 32)
    [last] = find_checkpoints(diverged)
    model, optimizer = load_state(last)
    save_checkpoint(diverged, last.state, {name: value * torch.nan for name, value in model.items()}, optimizer)
    full.mkdir()
    (full / "notes.txt").touch()
    empty = make_run(tmp_path / "empty", shards, steps=())
    before = sorted(tmp_path.rglob("*"))
    for words, code, message in (
        ([empty], 2, r"empty holds no checkpoint; pretrain first: sternum pretrain --help"),
        ([run, "--checkpoint=7"], 2, r"checkpoint names epoch 7, but \S+ has only epochs 1, 2; choose among these"),
        ([run, "--checkpoint=best"], 2, r"checkpoint=best must be last or a whole number"),
        ([run, "--channels=2"], 2, r"channels=2 must be 1 or 3"),
        ([damaged], 1, r"step-10 is damaged: model\.safetensors has \d+ bytes instead of \d+; delete it"),
        ([diverged], 2, r"the features of this tiny_resnet are not finite; its training diverged: export another"),
        ([run, f"--out={full}"], 2, r"out=\S+full exists and is not an empty folder; name a new folder, or remove it"),
        ([run, f"--out={run / 'config.yaml'}"], 2, r"config\.yaml exists and is not an empty folder"),
        ([tmp_path], 2, r"config\.yaml does not exist; name a folder that `sternum pretrain` wrote"),
    ):
        out = [] if any("--out" in str(word) for word in words) else [f"--out={tmp_path / 'out'}"]
        assert main(["export", *map(str, words), *out, "--onnx=false"]) == code
        assert re.search(rf"^sternum: error: .*{message}.*\n$", capsys.readouterr().err), message
    assert sorted(tmp_path.rglob("*")) == before


def test_onnx_names_its_extra_and_the_way_without_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert main(["export", str(run), f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err == (
        "sternum: error: onnx=true needs ONNX with onnxscript and onnxruntime, which is not installed; "
        'pip install "sternum[onnx]", or add --onnx=false\n'
    )


def test_a_network_that_timm_lacks_is_exported_without_its_configuration(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(made_run(tmp_path / "run", shards, TINY_RESNET, 32), tmp_path / "out", None, 1, onnx=False)
    assert re.search(
        r"has no config\.json for timm and transformers: timm \S+ has no .*tiny_resnet", capsys.readouterr().err
    )
    assert not (tmp_path / "out" / "config.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert list(python_of(card)) == ["From an image file to the input", "torchvision"]
    assert "There is no configuration for timm and transformers: timm " in card
    assert "library_name" not in card
    assert "first/checkpoints/step-5/model.safetensors, SHA-256 `0000" in card
    written = card + (tmp_path / "out" / "export.json").read_text()
    assert "anna" not in written and "trained by Sternum for 2 epochs" in written


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_looks_whole(pictures: Path, tmp_path: Path) -> None:
    run, out = made_run(tmp_path / "run", pictures / "shards", "resnet18", 64), tmp_path / "exports" / "out"
    with subprocess.Popen([sys.executable, "-m", "launch", "export", str(run), f"--out={out}"]) as process:
        while not list(out.parent.glob(".out.partial-*/model.safetensors")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert list(out.parent.iterdir())
    export(run, out, None, 1, onnx=False)
    assert list(out.parent.iterdir()) == [out]
    assert open_export(out, "out").network == "resnet18"


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(pictures: Path, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", pictures / "shards", "resnet18", 64)
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        with small_disk(disk, size_mb=100):
            with pytest.raises(UserError, match=r"cannot write \S+out: it needs 134\.\d MB, but \S+ MB are free; free"):
                export(run, disk / "out", None, 1, onnx=False)
            assert not list(disk.iterdir())
    except NoDisk as reason:
        pytest.skip(str(reason))
