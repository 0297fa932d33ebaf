import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.results.results import write_results
from launch.cli import main as sternum
from tests.support.probe_results import around, made_dataset, made_results

MakeRun = Callable[..., Path]


@pytest.fixture
def probed(tmp_path: Path) -> MakeRun:
    """Call it with a name and a fraction: a run folder that holds results of both presets and nothing else."""

    def make(
        name: str,
        fraction_percent: int = 100,
        presets: tuple[str, ...] = ("gazda2021", "rigorous"),
        gain: float = 0.0,
        **run: Any,
    ) -> Path:
        results = made_results([made_dataset(preset) for preset in presets], fraction_percent)
        rows = [
            replace(row, scores=replace(row.scores, auc=around(row.scores.auc.value + gain))) for row in results.rows
        ]
        assert results.run is not None
        write_results(tmp_path / name, replace(results, rows=rows, run=replace(results.run, **run)))
        return tmp_path / name

    return make


def test_table_is_printed_and_written_in_three_forms(probed: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    whole, tenth = probed("whole"), probed("tenth", 10)
    assert sternum(["table", str(whole), str(tenth)]) == 0
    printed = capsys.readouterr().out
    assert (whole / "table3.md").read_text() == printed
    assert printed.count("| ours, epoch 24") == 2
    assert "by the preset gazda2021" in printed
    with (whole / "table3.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:4] == ["dataset", "features", "fraction", "ACC"]
    assert [row[2] for row in rows if row[1].startswith("ours")] == ["10 %", "100 %"]
    assert r"\toprule" in (whole / "table3.tex").read_text()
    assert not list(tenth.glob("table3.*"))


def test_table_of_another_preset_goes_into_another_folder_when_asked(
    probed: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = probed("run")
    assert sternum(["table", str(run), "--preset=rigorous", f"--out={tmp_path / 'tables'}"]) == 0
    assert "by the preset rigorous" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {"table3.md", "table3.csv", "table3.tex"}
    assert [path.name for path in run.iterdir()] == ["results.json"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert sternum(["table", *(str(word) for word in arguments)]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    return written.err


def test_seeds_of_one_recipe_become_one_row_with_mean_and_standard_deviation(
    probed: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [probed(f"seed-{seed}", seed=seed, gain=seed / 100) for seed in range(3)]
    assert sternum(["table", *map(str, runs), str(probed("tenth", 10))]) == 0
    printed = capsys.readouterr().out
    with (runs[0] / "table3.csv").open(newline="") as file:
        single, several = [row for row in csv.DictReader(file) if row["features"].startswith("ours")]
    assert several["features"] == "ours, epoch 24, mean of 3 seeds (SD)"
    aucs = [100 * (0.963 + seed / 100) for seed in range(3)]
    assert several["AUC"] == f"{sum(aucs) / 3:.1f} (1.0)"
    assert (several["95 %"], single["fraction"]) == ("", "10 %")
    assert single["95 %"]
    assert "global batch 256, 24 epochs, seeds 0, 1, 2." in printed


def test_runs_of_one_fraction_that_differ_in_more_than_the_seed_are_refused(
    probed: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    one, same, other = probed("one", 10), probed("same", 10), probed("other", 10, seed=1, epochs=12.0)
    assert f"{one} and {same} have the same seed=0" in refused(capsys, one, same)
    assert "are not of one recipe; they differ in epochs=24.0 and 12.0" in refused(capsys, one, other)
    assert not list(one.glob("table3.*"))


def test_run_that_was_not_probed_is_refused(
    probed: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "absent/results.json does not exist; probe the run first" in refused(
        capsys, probed("run"), tmp_path / "absent"
    )


def test_results_of_another_version_are_refused(probed: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = probed("run")
    content = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(content | {"version": 1}))
    assert "has version 1, this Sternum reads 2 and 3; probe the run again" in refused(capsys, run)


def test_preset_that_was_not_probed_by_is_refused_with_those_that_were(
    probed: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(capsys, probed("run", presets=("rigorous",)), "--preset=gazda2021")
    assert "was probed by rigorous; name --preset=rigorous, or run sternum probe with --presets=[gazda2021]" in message


def test_preset_that_all_runs_have_is_taken_if_none_is_named(
    probed: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    strict, both = probed("strict", presets=("rigorous",)), probed("both", 10)
    assert sternum(["table", str(strict), str(both)]) == 0
    assert "by the preset rigorous" in capsys.readouterr().out
    lenient = probed("lenient", presets=("gazda2021",))
    assert f"preset=gazda2021: {strict} was probed by rigorous" in refused(capsys, strict, lenient)
