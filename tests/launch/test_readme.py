"""The commands, links and options in the documentation, checked on simulated radiographs."""

import gc
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.cli import main
from sharding.images.encode import decode
from sharding.packing.pack import PackConfig, pack
from sharding.reading.shard_set import ShardSet
from sharding.reading.stream import packed_metadata
from sharding.simulation.datasets import write_cell, write_chexpert
from ssl_core.checkpoints.checkpoint import find_checkpoints

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
REFERENCE = ROOT / "docs" / "commands.md"
FOLDERS = ("infra", "sharding", "ssl_core", "evaluation", "launch", "sternum", "benchmarks", "tests")
PAGES = [
    README,
    ROOT / "SECURITY.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
OTHERS_NAMES = {"ImageHash", "Anonymous", "Unknown", "TORCH_HOME", "HF_HOME"}  # of a library and of datasets

# Two steps of a small network on small views, and a short search in one process: test_demo.py searches with Ray.
SMALLER = "--model.backbone=resnet18 --views.size_px=32 --data.global_batch=8 --data.lanes=8 --train.max_steps=2"
SHORTER = "--folds=2 --few_labels=false --untrained_seeds=1 --search=serial"
LOCAL = "--rdzv-endpoint=localhost:29400 --rdzv-conf=last_call_timeout=3"
# By default, the README's commands alone, with one preset and without pictures.
CHEAPER = f"{SHORTER} --presets=[gazda2021] --pictures=false"


def commands(whole: bool) -> str:
    """Return the bash blocks of the README, then, if `whole`, those of the reference, as one script for minutes."""
    text = README.read_text() + REFERENCE.read_text() * whole
    script = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    shorter = SHORTER if whole else CHEAPER
    for command, options in {"--data.shards=[shards/chexpert]\n": SMALLER, "sternum probe ": shorter}.items():
        assert command in script
        script = script.replace(command, f"{command.rstrip()} {options}{command[-1]}")
    endpoint = "--rdzv-endpoint=first-machine:29400"
    assert (endpoint in script) == whole
    return script.replace(endpoint, LOCAL)


@pytest.mark.timeout(900)  # about a minute, but each of its commands starts several processes
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_of_the_documentation_do_what_they_say(tmp_path: Path, whole: bool) -> None:
    write_chexpert(tmp_path / "chexpert", patients=20, seed=0, size_px=64)
    write_cell(tmp_path / "cell", {"train": 90, "val": 20, "test": 40}, seed=0, size_px=64)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(whole)],
        cwd=tmp_path,
        env=os.environ
        | {
            "CHEXPERT": str(tmp_path / "chexpert"),
            "CELL": str(tmp_path / "cell"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    run = tmp_path / "runs" / "paper"
    assert [checkpoint.state.backbone for checkpoint in find_checkpoints(run)] == ["resnet18"]
    assert "projection_width: 2048" in (run / "config.yaml").read_text()  # the paper's
    assert "untrained" in ended.stdout
    assert (tmp_path / "views.png").exists() == whole
    page = (run / "report.html").read_text()
    assert "untrained" in page
    assert "<svg" in page or "data:image" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_and_names_in_the_text_exist(page: Path) -> None:
    text = page.read_text()
    for path in set(re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w/.-]*)`", text)):
        assert (ROOT / path).exists(), path
    code = "\n".join(module.read_text() for folder in FOLDERS for module in (ROOT / folder).rglob("*.py"))
    for name in set(re.findall(r"`(test_\w+|[A-Z]\w*[a-z]\w*|[A-Z]+_[A-Z_]+)`", text)) - OTHERS_NAMES:
        assert re.search(rf"\b{name}\b", code), name


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


def test_no_placeholder_is_left_in_the_docs() -> None:
    for page in PAGES:
        assert not re.search(r"@[A-Z_]+@", page.read_text()), page


def test_the_options_in_the_running_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Options outside the code blocks; those of other programs have hyphens in their names."""
    for command in (
        "shard",
        "verify",
        "audit",
        "views",
        "pretrain",
        "supervise",
        "probe",
        "embed",
        "predict",
        "table",
        "compare",
        "doctor",
        "report",
        "runs",
        "submit",
        "export",
    ):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    known = capsys.readouterr().out
    for page in (README, REFERENCE):
        for option in set(re.findall(r"`--([\w.]+)(?![\w.-])", page.read_text())):
            assert f"--{option}" in known, f"{page.name}: {option}"


def test_the_python_of_the_readme_reads_every_packed_image_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cell(tmp_path / "raw", {"train": 6, "test": 2}, seed=0, size_px=32)
    pack(PackConfig("cell", tmp_path / "raw", tmp_path / "shards" / "cell", shorter_side_px=32, workers=1))
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves the tars open
        names: dict[str, Any] = {}
        exec(code, names)
        gc.collect()
    shards = ShardSet([tmp_path / "shards" / "cell"], ["train"])
    expected = [f"{record['patient']} {record['labels']} torch.Size" for record in packed_metadata(shards)]
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.partition("([")[0] for line in printed) == sorted(expected)
    last, _ = decode(shards.read(len(shards.shards) - 1, shards.shard_samples[-1] - 1).tobytes())
    assert torch.equal((names["image"] * 255).round().to(torch.uint8), torch.from_numpy(np.array(last)))
