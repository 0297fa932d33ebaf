from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.results.datasets import TaskKey
from evaluation.results.replaced import warn_of_lost_results
from evaluation.results.results import RESULTS_NAME, write_results
from tests.support.probe_results import made_dataset, made_results


def keys(*labels: str, presets: Iterable[str] = ("gazda2021", "rigorous")) -> list[TaskKey]:
    return [TaskKey(label, preset) for label in labels for preset in presets]


def test_lost_tasks_are_named_once_with_the_presets_that_are_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = [
        replace(made_dataset(preset), label=f"site: {question}" if question else label, question=question)
        for preset in ("gazda2021", "rigorous")
        for label, question in (("cell", ""), ("site", "Mass"), ("site", "Edema"))
    ]

    def said(coming: list[TaskKey]) -> str:
        warn_of_lost_results(tmp_path, coming)
        return capsys.readouterr().err

    assert said(keys("cell")) == ""  # nothing was probed yet
    write_results(tmp_path, made_results(datasets))
    path = tmp_path / RESULTS_NAME
    assert said(keys("cell", "site", "hospital")) == ""
    assert said(keys("cell")).startswith(f"warning: {path} holds 'site' by gazda2021 and rigorous, which this probe")
    lost = "'cell' by gazda2021, 'site' by gazda2021"
    assert said(keys("cell", "site", presets=["rigorous"])).startswith(f"warning: {path} holds {lost}, which")
    path.write_text('{"version": 99}')
    assert said(keys("cell")) == f"warning: {path} cannot be read by this Sternum; it will be replaced\n"
