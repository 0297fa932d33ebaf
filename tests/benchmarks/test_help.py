from importlib import import_module

import pytest

NAMES = [
    "coverage",
    "features",
    "gpu",
    "host_work",
    "kernels",
    "learning",
    "learning_peers",
    "learning_speed",
    "loader",
    "loss",
    "loss_accuracy",
    "monitoring_cost",
    "order",
    "packing",
    "probe",
    "probe_fit",
    "reliability",
    "scaling",
    "seed_coverage",
    "sick_runs",
    "step",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        import_module(f"benchmarks.{name}").main(["--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out
