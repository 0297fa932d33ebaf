"""The words that choose a kept probe, and the nearest names for those that choose none."""

from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.inference.probe_choice import choose, split_words
from evaluation.results.kept_probes import KeptProbe
from infra.errors import UserError
from tests.evaluation.results.test_kept_probes import PROBE

LABELS = ("Edema", "Mass")
FINDINGS = [
    replace(PROBE, dataset=f"site, findings: {label}", task="findings", task_kind="multilabel", question=label)
    for label in LABELS
]
OTHER_SET = replace(PROBE, dataset="site, cell")
PROBES = [
    replace(PROBE, preset="gazda2021"),
    replace(PROBE, features="imagenet", kind="compared", step=None),
    replace(PROBE, features="epoch 4", step=4),
    PROBE,
    *FINDINGS,
]


def chosen(task: str, **words: str) -> list[KeptProbe]:
    return choose(PROBES, task, f"probe=run:{task}", words.get("preset"), words.get("features"))  # type: ignore[arg-type]


def test_last_checkpoint_by_the_stricter_preset_unless_other_words_say_so() -> None:
    assert chosen("cell") == [PROBE]
    assert chosen("cell", preset="gazda2021") == PROBES[:1]
    assert chosen("cell", features="imagenet") == PROBES[1:2]


def test_task_means_all_of_its_questions_and_a_question_only_itself() -> None:
    assert chosen("site, findings") == chosen("findings") == FINDINGS
    assert chosen("site, findings: Mass") == FINDINGS[1:]


@pytest.mark.parametrize(
    ("task", "words", "message"),
    [
        ("cel", {}, r"no probe of 'cel' is kept \(did you mean 'cell'\?\); name 'cell' or 'site, findings'$"),
        ("", {}, "must name a task too, behind a colon: 'cell' or 'site, findings'$"),
        ("findings", {"preset": "gazda2021"}, "preset=gazda2021 was not probed; take 'rigorous'$"),
        ("cell", {"features": "epoch5"}, r"features=epoch5 must name a row .*did you mean 'epoch 5'"),
    ],
)
def test_other_words_are_one_line_with_the_nearest_name(task: str, words: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(task, **words)


def test_task_of_several_sets_needs_the_name_in_the_tables() -> None:
    others = [replace(each, dataset=each.dataset.replace("site", "town")) for each in FINDINGS]
    with pytest.raises(UserError, match=r"several sets; name 'site, findings' or 'town, findings'$"):
        choose([*FINDINGS, *others], "findings", "probe=run:findings", None, None)


def test_run_and_task_are_split_behind_the_folder(tmp_path: Path) -> None:
    run = tmp_path / "a:b"
    run.mkdir()
    assert split_words(f"{run}:site, findings: Mass", "probe") == (run, "site, findings: Mass")
    assert split_words(str(run), "probe") == (run, "")
    with pytest.raises(UserError, match="probe=nowhere:cell must be RUN:TASK"):
        split_words("nowhere:cell", "probe")
