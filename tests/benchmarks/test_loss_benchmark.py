import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import loss
from benchmarks.apart import apart


def run(out: Path, *arguments: str) -> dict[str, Any]:
    loss.main([f"--out={out}", *arguments])
    figures: dict[str, Any] = json.loads(out.read_text())
    return figures


def test_loss_benchmark_measures_time_and_memory_and_agrees_with_equation_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The benchmark measures each way in a separate process; this test in its own, to save their starts.
    monkeypatch.setattr(loss, "apart", lambda function, *arguments: function(*arguments))
    result = run(tmp_path / "loss.json", "--sections=speed", "--rows=512", "--width=16", "--repeats=1")
    assert result["units"]["peak_bytes"] == "bytes"
    costs = {name: by_size["512"] for name, by_size in result["speed"].items()}
    for name in ("sternum, tiled", "sternum, dense"):
        assert costs[name][0]["seconds"] > 0
        assert costs[name][0]["loss"] == pytest.approx(costs["equation 4 by autograd"][0]["loss"], rel=1e-5)
    assert all("pip install" in remark for remark in costs.values() if isinstance(remark, str))
    assert "N = 512 rows" in capsys.readouterr().out


def fail() -> None:
    raise ValueError("no such thing")


def test_a_measurement_runs_in_a_separate_process_whose_failure_is_one_line() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: no such thing$"):
        apart(fail)


@pytest.mark.slow
def test_loss_benchmark_finds_our_gradient_right_in_two_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path / "loss.json", "--sections=gradients", "--worlds=2")
    deviation = result["gradients"]["sternum, tiled"]["2"]
    assert deviation["relative_error"] < 1e-5
    assert deviation["cosine"] == pytest.approx(1)
    assert "cosine" in capsys.readouterr().out


@pytest.mark.slow
def test_loss_benchmark_measures_each_way_in_a_separate_process(tmp_path: Path) -> None:
    result = run(tmp_path / "loss.json", "--sections=speed", "--rows=512", "--width=16", "--repeats=1")
    assert result["speed"]["sternum, tiled"]["512"][0]["peak_bytes"] > 0


@pytest.mark.slow
def test_loss_benchmark_finds_gradient_caching_exact(tmp_path: Path) -> None:
    arguments = ["--global_batch=16", "--micro_batches=4", "--size_px=32", "--backbone=resnet18", "--repeats=1"]
    result = run(tmp_path / "loss.json", "--sections=cache", *arguments)
    assert result["cache"]["relative_error"]["float64"] < 1e-10
    assert all(turns[0]["peak_bytes"] > 0 for turns in result["cache"]["steps"].values())
