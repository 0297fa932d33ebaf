"""A base install, without any extra, in an empty environment: what it can do, and what it says when it cannot."""

import os
import shutil
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SIMULATE = """
from pathlib import Path
from sharding.simulation.datasets import write_cell, write_chexpert

write_chexpert(Path("raw/chexpert"), patients=8, seed=0, size_px=64)
write_cell(Path("raw/cell"), {"train": 24, "val": 8, "test": 16}, seed=0, size_px=64)
folder = Path("raw/folder/NORMAL")
folder.mkdir(parents=True)
(folder / "film.dcm").write_bytes(bytes(128) + b"DICM")
Path("dino").mkdir()
Path("dino/config.json").write_text('{"model_type": "dinov2"}')
"""
PRETRAIN = (
    "pretrain run --data.shards=[shards/chexpert] --data.splits=[train] --data.global_batch=4 --data.lanes=2 "
    "--views.size_px=32 --model.backbone=resnet18 --train.epochs=1 --train.max_steps=1"
)
PROBE = "probe run --data.shards=[shards/cell] --few_labels=false --bootstrap_resamples=100"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Base(NamedTuple):
    """A base install and the folder in which its commands run."""

    bin: Path
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [self.bin / words[0], *words[1:]],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def sternum(self, words: str) -> None:
        done = self.run("sternum", *words.split())
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Install a copy of the tree, then simulate and pack a pretraining set and a labeled set."""
    folder = tmp_path_factory.mktemp("base")
    for name in ("infra", "sharding", "ssl_core", "evaluation", "launch"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree" / name)
    venv.create(folder / "venv", with_pip=True)
    base = Base(folder / "venv" / "bin", folder)
    installed = base.run("pip", "install", "--quiet", "--constraint", "tree/constraints.txt", "./tree")
    assert installed.returncode == 0, installed.stderr
    assert base.run("python", "-c", SIMULATE).returncode == 0
    for dataset in ("chexpert", "cell"):
        base.sternum(f"shard {dataset} --root=raw/{dataset} --out=shards/{dataset} --shorter_side_px=48")
    return base


@pytest.fixture(scope="module")
def pretrained(base: Base) -> Base:
    base.sternum(PRETRAIN)
    return base


def test_the_base_has_none_of_the_optional_packages(base: Base) -> None:
    installed = base.run("pip", "list", "--format=freeze").stdout.lower()
    names = {line.partition("==")[0] for line in installed.splitlines()}
    assert not names & {
        "deepspeed",
        "gcsfs",
        "imagecodecs",
        "mlflow-skinny",
        "nvidia-dali-cuda130",
        "onnx",
        "pydicom",
        "ray",
        "s3fs",
        "timm",
        "transformers",
        "wandb",
    }


def test_the_base_verifies_audits_and_shows_shards(base: Base) -> None:
    base.sternum("verify shards/chexpert")
    base.sternum("audit shards/chexpert shards/cell --out=audit")
    base.sternum("views shards/chexpert --out=views.png --views.size_px=32")


def test_the_base_pretrains_probes_and_reports(pretrained: Base) -> None:
    pretrained.sternum(f"{PROBE} --search=serial")
    pretrained.sternum("table run")
    pretrained.sternum("report run")
    pretrained.sternum("export run --out=export --onnx=false")


def refusal(base: Base, words: Sequence[str]) -> str:
    done = base.run("sternum", *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "reason", "extra", "instead"),
    [
        (f"{PRETRAIN} --executor=dali", "executor=dali needs NVIDIA DALI", "dali", "use executor=torchvision"),
        (
            f"{PRETRAIN} --engine.kind=deepspeed",
            "engine.kind=deepspeed needs DeepSpeed",
            "deepspeed",
            "engine.kind=ddp",
        ),
        (
            PRETRAIN.replace("resnet18", "timm/resnet18"),
            "model.backbone=timm/resnet18 needs timm",
            "timm",
            "take a network of torchvision",
        ),
        ("export run --out=new", "onnx=true needs ONNX", "onnx", "add --onnx=false"),
        (PROBE, "search=ray needs Ray", "ray", "use search=serial"),
        (
            "probe --backbones=[a=dino] --out=new --data.shards=[shards/cell] --search=serial",
            "backbones: a=dino needs transformers",
            "transformers",
            "name a file of torchvision or timm",
        ),
        ("submit ray -- sternum probe run", "sternum submit ray needs Ray", "ray", ""),
        ("shard dicom --root=raw/folder --out=new", "the dataset dicom needs pydicom", "dicom", ""),
        ("shard folder --root=raw/folder --out=new", "raw/folder/NORMAL/film.dcm needs pydicom", "dicom", ""),
        ("shard cell --root=raw/cell --out=s3://bucket/new", "s3://bucket/new needs s3fs", "s3", ""),
        ("shard cell --root=raw/cell --out=gs://bucket/new", "gs://bucket/new needs gcsfs", "gcs", ""),
        (f"{PRETRAIN} --data.shards=[s3://bucket/packed]", "s3://bucket/packed needs s3fs", "s3", ""),
        (f"{PRETRAIN} --data.shards=[gs://bucket/packed]", "gs://bucket/packed needs gcsfs", "gcs", ""),
        (f"{PRETRAIN} --log.wandb=chest", "log.wandb=chest needs Weights & Biases", "wandb", "leave it out"),
        (f"{PRETRAIN} --log.mlflow=sqlite:///x", "log.mlflow=sqlite:///x needs MLflow", "mlflow", "leave it out"),
        (f"{PRETRAIN} --checkpoints.mirror=s3://bucket/run", "s3://bucket/run needs s3fs", "s3", ""),
    ],
)
def test_a_missing_extra_is_one_line_that_names_it(
    pretrained: Base, words: str, reason: str, extra: str, instead: str
) -> None:
    line = refusal(pretrained, words.replace("pretrain run", f"pretrain new-{extra}").split())
    assert reason in line
    assert f'which is not installed; pip install "sternum[{extra}]"' in line
    assert instead in line
