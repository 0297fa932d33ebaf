"""Small runs of the benchmarks in separate processes, because they change the state of their process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def run_benchmark(name: str, out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run `python -m benchmarks.NAME` and return the figures in its JSON file, and its output."""
    ended = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", f"--out={out}", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures, ended.stdout
