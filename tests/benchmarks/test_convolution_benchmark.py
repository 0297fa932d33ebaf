import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_convolution_benchmark_measures_backbones_and_layers(tmp_path: Path) -> None:
    out = tmp_path / "convolution.json"
    arguments = ["--backbones", "resnet18", "--sizes_px", "32", "--batch=2", "--repeats=1", f"--out={out}"]
    subprocess.run([sys.executable, "-m", "benchmarks.convolution", *arguments], cwd=ROOT, check=True)
    content = json.loads(out.read_text())
    assert content["units"].keys() <= content["figures"][0].keys()
    assert {figure["dtype"] for figure in content["figures"]} == {"bf16", "fp32"}
    assert all(figure["ratio"] > 0 for figure in content["figures"])
