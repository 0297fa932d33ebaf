import json
import re
from pathlib import Path

import pytest

from benchmarks.gpu import LIMITS_S, main, run_stage
from benchmarks.gpu_stages import GPU_TESTS
from benchmarks.kernels import SHARED_BYTES
from tests.support.benchmark_runs import ROOT, run_benchmark


def test_a_stage_that_hangs_is_a_result() -> None:
    stage = run_stage("speed", reduced=True, limit_s=0.2)
    assert not stage.ok
    assert stage.last_lines[-1] == "the stage did not end within 0 s"


def test_a_stage_that_fails_is_written_and_makes_the_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert main([f"--out={out}", "--reduced", "--stages", "environment", "--limit_factor=0.001"]) == 1
    [stage] = json.loads(out.read_text())["stages"]
    assert not stage["ok"]
    assert stage["last_lines"] == ["the stage did not end within 0 s"]
    assert "environment  FAILED" in capsys.readouterr().out


def test_the_stage_of_the_tests_runs_all_that_need_a_gpu() -> None:
    mark = re.compile(r"^[ @]*pytest\.mark\.gpu,?$", re.MULTILINE)
    marked = {path for path in (ROOT / "tests").rglob("test_*.py") if mark.search(path.read_text())}
    assert marked == {ROOT / path for path in GPU_TESTS}


def test_a_machine_without_gpus_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--out={tmp_path / 'gpu.json'}"]) == 2
    assert "no GPU that torch can use" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_stages_pass_on_the_cpu_in_reduced_form(tmp_path: Path) -> None:
    result, text = run_benchmark("gpu", tmp_path / "gpu.json", "--reduced", "--limit_factor=3")
    assert [stage["name"] for stage in result["stages"]] == list(LIMITS_S)
    assert all(stage["ok"] and stage["figures"] for stage in result["stages"])
    assert result["gpus"] == []
    assert "memory_seconds" in text


def test_the_stored_kernels_fit_every_gpu_at_the_papers_width() -> None:
    stored = json.loads((ROOT / "docs/results/kernels/kernels.json").read_text())["kernels"]
    assert {made["capability"] for made in stored} == set(SHARED_BYTES)
    at_128 = [made for made in stored if made["width"] == 128]
    assert len(at_128) == 4 * len(SHARED_BYTES)
    assert all(made["fits"] and not made["spilled_bytes"] and made["tensor_core_instructions"] for made in at_128)
