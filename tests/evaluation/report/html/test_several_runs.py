from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.report.html.several_runs import report_on_several
from evaluation.results.results import write_results
from infra.errors import UserError
from tests.support.html_page import Page
from tests.support.probe_results import made_results

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> list[Path]:
    """Two probed runs with results alone, and one that was not probed."""
    folder = tmp_path_factory.mktemp("several")
    made = [make_run(folder / name / "run", shards, steps=()) for name in ("a", "b", "c")]
    for run in made[:2]:
        write_results(run, made_results())
    config = made[1] / "config.yaml"
    config.write_text(config.read_text().replace("temperature: 0.5", "temperature: 0.1"))
    return made


def test_runs_stand_side_by_side_with_what_differs(runs: list[Path], tmp_path: Path) -> None:
    page = Page(report_on_several(runs, tmp_path / "out").read_text())
    assert page.attributes("h2", "id") == ["summary", "curves", "scores", "differences", "configuration"]
    for words in ("a/run is a resnet18", "b/run is a resnet18", "Not probed yet: c/run", "loss.temperature", "0.1"):
        assert words in page.text
    assert "loss.momentum" not in page.text
    assert "cannot be compared image by image" in page.text  # without predictions.csv
    assert len(page.attributes("img", "alt")) == 2  # one AUC by epoch for each preset


def test_runs_without_results_and_one_named_twice(runs: list[Path], tmp_path: Path) -> None:
    page = Page(report_on_several([runs[2], runs[0]], tmp_path).read_text())
    assert "Fewer than two of the runs have been probed." in page.text
    with pytest.raises(UserError, match="names a run twice"):
        report_on_several([runs[0], runs[0].parent / "run"], tmp_path)


def test_results_of_other_recipes_keep_their_own_tables(runs: list[Path], tmp_path: Path) -> None:
    other = made_results(fraction_percent=10)
    write_results(runs[1], replace(other, notes=["a note of one run"]))
    assert "a note of one run" in report_on_several(runs[:2], tmp_path).read_text()
