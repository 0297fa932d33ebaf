"""No command unpickles a file: pickles that would leave a mark are planted at every path that any command reads."""

import ast
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torchvision
import transformers

from evaluation.probing import watch as watching
from launch.cli import main as sternum
from sharding.simulation.datasets import write_cell
from tests.structure import PACKAGES

ROOT = Path(__file__).parents[2]
SMALL = [
    "--model.backbone=resnet18",
    "--views.size_px=32",
    "--data.global_batch=8",
    "--data.lanes=8",
    "--optim.warmup_steps=1",
]
SHORT = ["--executor=torchvision", "--search=serial", "--folds=3", "--few_labels=false", "--bootstrap_resamples=0"]
SHORT += ["--untrained_seeds=1"]
PRETRAIN = ["pretrain", "run", "--data.shards=[shards]", "--data.splits=[val]", "--config=cpu"]
PRETRAIN += [*SMALL, "--optim.warmup_steps=1"]

# Each command that reads what others may have written, as a user would give it beside their folders.
COMMANDS: dict[str, list[str]] = {
    "shard": ["shard", "cell", "--root=raw", "--out=shards", "--shorter_side_px=64", "--workers=1"],
    "verify": ["verify", "shards", "--workers=1"],
    "audit": ["audit", "shards", "--workers=1"],
    "views": ["views", "shards", "--out=views.png", "--executor=torchvision"],
    "pretrain": [*PRETRAIN, "--train.max_steps=3"],
    "supervise": ["supervise", "run", "--patience=0", "--pause_s=0", "--", "false"],
    "probe": ["probe", "run", "--data.shards=[shards]", *SHORT, "--checkpoints=last", "--presets=[gazda2021]"],
    "watch": ["probe", "run", "--data.shards=[shards]", *SHORT, "--watch=true"],
    "select": ["probe", "run", "--data.shards=[shards]", *SHORT, "--select=true"],
    "finetune": ["probe", "run", "--data.shards=[shards]", *SHORT, "--finetune.epochs=1"],
    "backbones": [
        "probe",
        "--backbones=[file=weights.pth@resnet18,dino=dino]",
        "--out=backbones",
        "--input.size_px=28",
    ],
    "embed": ["embed", "shards", "--backbone=run", "--executor=torchvision", "--out=features.csv"],
    "predict": ["predict", "raw/test/NORMAL", "--probe=run:cell", "--workers=1"],
    "report": ["report", "run"],
    "table": ["table", "run"],
    "export": ["export", "run", "--out=again", "--onnx=false"],
    "init": ["pretrain", "next", *PRETRAIN[2:], "--model.init=exported", "--check"],
    "config": ["probe", "run", "--config=probe.yaml"],
}
COMMANDS["backbones"] += ["--input.size_px=28", "--data.shards=[shards]", *SHORT, "--presets=[gazda2021]"]


class Planted:
    """Unpickling it creates a folder."""

    def __init__(self, bait: Path) -> None:
        self.bait = bait

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.bait),)


def pickled(bait: Path) -> bytes:
    return pickle.dumps(Planted(bait))


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw images, shards, and a run that was pretrained and probed."""
    folder = tmp_path_factory.mktemp("stranger")
    write_cell(folder / "raw", {"train": 110, "val": 20, "test": 40}, seed=0, size_px=64)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), folder / "weights.pth")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).save_pretrained(folder / "dino")
    (folder / "dino" / "preprocessor_config.json").write_text('{"size": 28, "image_mean": [0.5], "image_std": [0.5]}')
    (folder / "probe.yaml").write_text("data: {shards: [shards]}\ncheckpoints: last\n")
    with inside(folder):
        assert sternum(COMMANDS["shard"]) == 0
        assert sternum([*PRETRAIN, "--train.max_steps=2", "--train.checkpoint_every_steps=1"]) == 0
        assert sternum(COMMANDS["probe"]) == 0
    return folder


@pytest.fixture(scope="module")
def folders(probed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all that other commands leave behind."""
    folder = copy_of(probed, tmp_path_factory.mktemp("visited") / "copy")
    with inside(folder):
        for name in ("finetune", "select", "backbones", "report", "table"):
            assert sternum(COMMANDS[name]) == 0, name
        assert sternum(["export", "run", "--out=exported", "--onnx=false"]) == 0
    # A watch waits for a paused run to go on.
    status = folder / "run" / "status.json"
    status.write_text(status.read_text().replace('"paused"', '"finished"'))
    return folder


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def copy_of(folders: Path, copy: Path) -> Path:
    """Copy the folders; link what no command changes."""

    def copy_file(source: str, target: str) -> None:
        if source.endswith((".safetensors", ".tar", ".jpeg")):
            os.link(source, target)
        else:
            shutil.copy2(source, target)

    shutil.copytree(folders, copy, copy_function=copy_file)
    return copy


def plant(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a link to the original
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


_opened: list[str] = []
_watching = False


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.fspath(os.fsdecode(arguments[0])))


sys.addaudithook(_note)


def paths_opened(copy: Path, command: str) -> set[Path]:
    """Run a command in a copy, and return the paths below it that it opened, whether they existed or not."""
    global _watching  # noqa: PLW0603 (an audit hook cannot be removed)
    _opened.clear()
    _watching = True
    try:
        with inside(copy):
            sternum(COMMANDS[command])
    finally:
        _watching = False
    opened = {Path(os.path.normpath(copy / path)) for path in _opened}
    return {path.relative_to(copy) for path in opened if path.is_relative_to(copy) and not path.is_dir()}


def test_no_module_calls_what_unpickles_or_executes_text() -> None:
    forbidden = re.compile(
        r"(pickle|cPickle|dill|cloudpickle|marshal|shelve|joblib)\.(loads?|Unpickler|open)|torch\.load|torch\.hub\..*"
        r"|np\.load|numpy\.load|dist\.\w*_object(_list|s)?|Tuner\.restore|yaml\.(load|load_all|unsafe_load|full_load)"
        r"|eval|exec|pd\.read_pickle|os\.system"
    )
    safe = {
        "infra/configuration/plain_yaml.py: yaml.load",  # with a subclass of the safe loader
        "ssl_core/model/published.py: torch.hub.get_dir",  # a path
        "ssl_core/model/weights.py: torch.load",  # restricted, as checked below
    }
    calls = [
        (f"{module.relative_to(ROOT)}: {name}", node)
        for package in PACKAGES
        for module in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and forbidden.fullmatch(name := ast.unparse(node.func))
    ]
    assert {call for call, _ in calls} == safe
    for call, node in calls:
        if call.endswith("torch.load"):
            assert "weights_only=True" in map(ast.unparse, node.keywords), call


@pytest.mark.slow
def test_planted_features_and_fits_are_named_and_made_again(
    probed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy, bait = copy_of(probed, tmp_path / "copy"), tmp_path / "executed"
    files = [path for path in (copy / "run" / "features").rglob("*.*s*") if path.is_file()]
    probes = [path for path in files if path.parent.name == "probes"]
    assert len(probes) > 2
    for path in [*files, *(path.with_suffix(".jsonl") for path in probes)]:
        plant(path, pickled(bait))
    with inside(copy):
        assert sternum(COMMANDS["probe"]) == 0
    said = capfd.readouterr().err
    assert not bait.exists()
    assert said.count("fitting again") == len(probes)
    pickle.loads(pickled(bait))
    assert bait.exists()  # so it would have been noticed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("command", COMMANDS)
def test_pickle_at_any_path_that_a_command_reads_is_not_executed(
    folders: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain pickle: torch.load and numpy.load would execute it too.

    Pickles are planted at all paths at once. A command that opens some may end there, so those are taken back, and the
    command goes on to the others. What it never opens beside others is planted alone.
    """
    monkeypatch.setattr(watching, "POLL_S", 0.1)
    monkeypatch.setattr(watching, "RESTART_S", 1.0)
    bait = tmp_path / "executed"

    def opened_with_planted(paths: set[Path]) -> set[Path]:
        copy = copy_of(folders, tmp_path / "copy")
        for path in paths:
            plant(copy / path, pickled(bait))
        opened = paths_opened(copy, command)
        assert not bait.exists(), sorted(paths & opened)
        shutil.rmtree(copy)
        return opened

    waiting = opened_with_planted(set())
    assert waiting, "the hook saw nothing"
    # The hook does not see files that the library of safetensors maps into memory.
    for written in ("run", "dino", "backbones", "exported"):
        waiting |= {path.relative_to(folders) for path in (folders / written).rglob("*.safetensors")}
    while opened := waiting & opened_with_planted(waiting):
        waiting -= opened
    for path in sorted(waiting):
        opened_with_planted({path})
