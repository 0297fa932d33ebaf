import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(out: Path, *arguments: str) -> tuple[dict, str]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.loss", f"--out={out}", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def test_loss_benchmark_measures_time_and_memory_and_agrees_with_equation_4(tmp_path):
    result, text = run(tmp_path / "loss.json", "--sections=speed", "--rows=512", "--width=16", "--repeats=1")
    assert result["units"]["peak_bytes"] == "bytes"
    costs = {name: by_size["512"] for name, by_size in result["speed"].items()}
    for name in ("sternum, tiled", "sternum, dense"):
        assert costs[name][0]["seconds"] > 0
        assert costs[name][0]["loss"] == pytest.approx(costs["equation 4 by autograd"][0]["loss"], rel=1e-5)
    assert all("pip install" in found for found in costs.values() if isinstance(found, str))
    assert "N = 512 rows" in text


def test_loss_benchmark_finds_our_gradient_right_in_two_processes(tmp_path):
    result, text = run(tmp_path / "loss.json", "--sections=gradients", "--worlds=2")
    found = result["gradients"]["sternum, tiled"]["2"]
    assert found["relative_error"] < 1e-5
    assert found["cosine"] == pytest.approx(1)
    assert "cosine" in text


@pytest.mark.slow
def test_loss_benchmark_finds_gradient_caching_exact(tmp_path):
    arguments = ["--global_batch=16", "--micro_batches=4", "--size_px=32", "--backbone=resnet18", "--repeats=1"]
    result, _ = run(tmp_path / "loss.json", "--sections=cache", *arguments)
    assert result["cache"]["relative_error"]["float64"] < 1e-10
    assert all(turns[0]["peak_bytes"] > 0 for turns in result["cache"]["steps"].values())
