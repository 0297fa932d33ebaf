"""The containers: linted, and the commands that build the packing container run in a folder of their own.

There is no docker here: base images, `apt-get`, users and the training container's install are only linted.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sharding.simulation.datasets import write_cell

ROOT = Path(__file__).parents[2]
CONTAINERS = ROOT / "infra" / "containers"
FILES = sorted(CONTAINERS.glob("*.Dockerfile"))
PLACE = "/opt/sternum"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_container_passes_hadolint(file: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_container_is_pinned_and_its_user_is_not_root(file: Path) -> None:
    lines = file.read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-[a-z]+-[a-z]+", base) for base in bases)
    assert [line for line in lines if line.startswith("USER ")] == ["USER 1000"]


def build_commands(file: Path, place: Path) -> str:
    """Return the RUN commands of a Dockerfile as a script with `place` instead of its folder."""
    text = re.sub(r"\\\n", " ", file.read_text())
    commands = [line.removeprefix("RUN ") for line in text.splitlines() if line.startswith("RUN ")]
    ours = [command for command in commands if not command.startswith(("apt-get ", "useradd "))]
    assert all(PLACE in command for command in ours)
    return "\n".join(ours).replace(PLACE, str(place)).replace("python -m venv", f"{sys.executable} -m venv")


def copy_sources(to: Path) -> None:
    """Copy what .dockerignore lets through, as COPY does."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    for name in (line[1:] for line in lines if line.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, to / name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_packing_container_examines_packs_verifies_and_audits_without_torch(tmp_path: Path) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    copy_sources(source)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = build_commands(CONTAINERS / "packing.Dockerfile", place)
    subprocess.run(["bash", "-euc", script], cwd=source, env=clean, check=True)
    write_cell(tmp_path / "cell", {"train": 6, "test": 2}, seed=0, size_px=32)
    for words in (
        ["doctor", f"--folders=[{tmp_path / 'shards'}]"],
        ["shard", "cell", f"--root={tmp_path / 'cell'}", f"--out={tmp_path / 'shards'}", "--shorter_side_px=32"],
        ["verify", str(tmp_path / "shards")],
        ["audit", str(tmp_path / "shards")],
    ):
        ended = subprocess.run(
            [place / "bin" / "sternum", *words], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
        )
        assert ended.returncode in ((0, 1) if words[0] == "audit" else (0,)), ended.stderr
        assert "Traceback" not in ended.stderr
    assert not list(place.glob("lib/python*/site-packages/torch"))
