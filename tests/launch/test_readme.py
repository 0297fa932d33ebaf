"""The README's commands, as they stand there, on simulated radiographs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from sharding.simulation.datasets import write_cell, write_chexpert
from ssl_core.checkpoints.checkpoint import find_checkpoints

ROOT = Path(__file__).parents[2]

# The paper's network and loss, but two steps of it on small views, so that a CPU gets through; and a short search.
SMALLER = "--views.size_px=32 --data.global_batch=8 --data.lanes=8 --train.max_steps=2"
SHORTER = "--folds=2 --few_labels=false"
ALONE = "--rdzv-endpoint=localhost:29400 --rdzv-conf=last_call_timeout=3"


def commands() -> str:
    """Return the README's bash blocks as one script."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    script = "\n".join(blocks)
    for command, options in {"--run_folder=runs/paper\n": SMALLER, "sternum probe ": SHORTER}.items():
        assert command in script
        script = script.replace(command, f"{command.rstrip()} {options}{command[-1]}")
    meeting = "--rdzv-endpoint=first-machine:29400"
    assert meeting in script
    return script.replace(meeting, ALONE)


@pytest.mark.timeout(900)  # about two minutes, but each of its commands starts several processes
def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    write_chexpert(tmp_path / "chexpert", patients=20, seed=0, size_px=64)
    write_cell(tmp_path / "cell", {"train": 60, "val": 20, "test": 40}, seed=0, size_px=64)
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands()],
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
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "runs" / "paper"
    assert [checkpoint.state.backbone for checkpoint in find_checkpoints(run)] == ["wide_resnet50_2"]
    assert "untrained" in done.stdout
    assert (tmp_path / "views.png").stat().st_size > 10_000
    page = (run / "report.html").read_text()
    assert "untrained" in page
    assert "<svg" in page or "data:image" in page
    for link in re.findall(r"\]\(([^)h][^)]*)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link


def test_no_placeholder_is_left_in_the_docs() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"@[A-Z_]+@", path.read_text()), path


def test_the_options_that_the_readme_names_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Options in the running text, outside the code blocks; other programs' have hyphens in their names."""
    text = (ROOT / "README.md").read_text()
    for command in ("shard", "pretrain", "probe"):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
    known = capsys.readouterr().out
    for option in set(re.findall(r"`--([\w.]+)(?![\w.-])", text)):
        assert f"--{option}" in known, option
