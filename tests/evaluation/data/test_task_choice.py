import re
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.data.joined_sets import JoinedSets
from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.set_choice import choose_sets
from evaluation.data.task_choice import choose_tasks, same_task
from evaluation.data.task_variants import external_variants
from evaluation.probing.config import ProbeConfig
from evaluation.results.tasks import BUILT_IN, Question, Task, multilabel
from infra.configuration.options import registered
from infra.errors import UserError
from sharding.format.manifest import Manifest
from tests.support.sample_records import Label, make_samples


def labeled_set(labels: list[Label], name: str = "mine", dataset: str = "folder") -> LabeledSet:
    manifest = Manifest(1, dataset, "-", {}, len(labels), len(labels), 0.5, 0.25, [], [], name=name)
    shards = None  # no image is read
    samples = make_samples([f"p{number}" for number in range(len(labels))], labels)
    return LabeledSet("shards", shards, manifest, samples, name)  # type: ignore[arg-type]


def of_classes(*names: str, blank: int = 1) -> list[Label]:
    labels: list[Label] = [{name: int(name == one) for name in names} for one in names for _ in range(3)]
    return labels + [dict.fromkeys(names) for _ in range(blank)]


def test_two_classes_are_a_binary_task_whose_positive_class_is_said_and_can_be_chosen(
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = labeled_set(of_classes("Normal", "Pneumonia"))
    [[task]] = choose_tasks([two], [])
    assert (task.kind, task.questions) == ("binary", (Question("Pneumonia", "Normal"),))
    assert "mine: two classes, of which Pneumonia is positive and Normal negative" in capsys.readouterr().err
    [[swapped]] = choose_tasks([two], [], positive="Normal")
    assert swapped.questions == (Question("Normal", "Pneumonia"),)
    [[rarer]] = choose_tasks([labeled_set([*of_classes("a", "b"), {"a": 1, "b": 0}])], [])
    assert rarer.questions == (Question("b", "a"),)


def test_more_classes_are_multiclass_and_labels_that_go_together_are_multilabel(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [[classes]] = choose_tasks([labeled_set(of_classes("a", "b", "c"))], [])
    assert (classes.kind, classes.labels) == ("multiclass", ["a", "b", "c"])
    [[labels]] = choose_tasks([labeled_set([{"a": 1, "b": 1}, {"a": 0, "b": 0}, {"a": -1, "b": None}])], [])
    assert (labels.kind, labels.labels) == ("multilabel", ["a", "b"])
    assert "mine: the labels do not exclude each other, so each is probed on its own: a, b" in capsys.readouterr().err
    [[one]] = choose_tasks([labeled_set([{"a": 1}, {"a": 0}])], [])
    assert (one.kind, one.questions) == ("binary", (Question("a"),))
    assert capsys.readouterr().err == ""  # one label excludes nothing


def test_a_dataset_of_the_paper_has_its_own_tasks() -> None:
    chestxray14 = labeled_set(of_classes("Pneumonia", "No Finding"), "nih", "chestxray14")
    assert choose_tasks([chestxray14], []) == [list(BUILT_IN["chestxray14"])]


def test_a_named_task_is_for_the_sets_that_have_all_of_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "sick.yaml"
    path.write_text("kind: multilabel\nlabels: [Mass, Edema]\n")
    three, two = labeled_set(of_classes("Mass", "Edema", "Hernia")), labeled_set(of_classes("PNEUMONIA", "NORMAL"))
    chosen = choose_tasks([three, two], [str(path), "cell"])
    assert [[task.name for task in of_set] for of_set in chosen] == [["sick"], ["cell"]]


def test_another_set_answers_a_task_with_its_labels_or_with_its_own_task_of_the_same_positive_labels() -> None:
    cell = labeled_set(of_classes("PNEUMONIA", "NORMAL"), "cell", "cell")
    nih = labeled_set(of_classes("Pneumonia", "No Finding", "Edema"), "nih", "chestxray14")
    assert same_task(BUILT_IN["cell"][0], labeled_set(of_classes("PNEUMONIA", "NORMAL")), []) == [BUILT_IN["cell"][0]]
    assert same_task(BUILT_IN["cell"][0], nih, BUILT_IN["chestxray14"]) == list(BUILT_IN["chestxray14"])
    assert same_task(BUILT_IN["chestxray14"][1], cell, BUILT_IN["cell"]) == [BUILT_IN["cell"][0]]
    both = multilabel("both", ["EDEMA", "PNEUMONIA"])
    [turned] = same_task(both, nih, [multilabel("own", ["Pneumonia", "Edema"]), multilabel("other", ["Edema", "x"])])
    assert (turned.name, turned.labels) == ("own", ["Edema", "Pneumonia"])  # in the order of the fitted task
    assert same_task(both, nih, BUILT_IN["chestxray14"]) == []


def test_a_task_that_the_tested_set_does_not_answer_is_refused_with_the_missing_label(
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = JoinedSets(labeled_set(of_classes("a", "b")), labeled_set(of_classes("A", "c"), "other"))
    tasks = [Task("first", "binary", (Question("b"),)), Task("second", "binary", (Question("a"),))]
    own = [Task("theirs", "binary", (Question("A", "c"),))]
    found = list(external_variants(sets, tasks, own, "official"))
    assert [(item.label, item.tasks.tested.name) for item in found] == [
        ("other, theirs, fitted on mine, second", "theirs")
    ]
    assert "mine, first: other does not answer this task" in capsys.readouterr().err
    with pytest.raises(UserError) as caught:
        list(external_variants(sets, tasks[:1], own, "official"))
    assert str(caught.value).startswith("dataset 'other' does not answer the task 'first' of dataset 'mine', because")
    assert "has no label 'b'; its labels are A, c; if it calls labels otherwise, name a task file" in str(caught.value)


def test_the_sets_to_fit_and_to_test_are_chosen_by_name() -> None:
    one, two, three = (labeled_set(of_classes("a", "b"), name) for name in ("one", "two", "three"))
    sets = [one, two, three]
    assert choose_sets(sets, None, []) == (sets, [])
    alone, joined = choose_sets(sets, "two", [])
    assert (alone, [item.label for item in joined]) == ([], ["one, fitted on two", "three, fitted on two"])
    alone, joined = choose_sets([one, two], "two", ["two", "one"])
    assert (alone, [item.label for item in joined]) == ([two], ["one, fitted on two"])
    for train_on, test_on, words in (
        ("tow", [], "train_on=tow is none of the sets in data.shards (did you mean 'two'?); these are one, two, three"),
        ("two", ["four"], "test_on=four is none of the sets"),
        ("two", ["one"], "neither train_on nor test_on names 'three', which data.shards holds"),
    ):
        with registered(ProbeConfig), pytest.raises(UserError, match=re.escape(words)):
            choose_sets(sets, train_on, test_on)
    with pytest.raises(UserError, match="train_on=one needs another set to test on"):
        choose_sets([one], "one", [])


@pytest.mark.parametrize(
    ("names", "positive", "words"),
    [
        (["chexpert15"], None, "tasks names 'chexpert15', which is no built-in task (did you mean 'chexpert5'?)"),
        (["cell"], None, "task 'cell': dataset 'mine' has no label 'PNEUMONIA' (did you mean 'Pneumonia'?)"),
        (["covidgr"], None, "dataset 'mine' has no label 'COVID-19'; its labels are Normal, Pneumonia"),
        ([], "pneumonia", "positive=pneumonia is no class"),
        (["chexpert"], "Pneumonia", "keep one"),
    ],
)
def test_a_task_that_does_not_fit_is_refused_in_one_line(names: list[str], positive: str | None, words: str) -> None:
    with pytest.raises(UserError) as caught:
        choose_tasks([labeled_set(of_classes("Normal", "Pneumonia"))], names, positive)
    assert words in str(caught.value)


def test_a_set_that_no_named_task_fits_and_a_set_without_labels_are_refused() -> None:
    first, second = labeled_set(of_classes("PNEUMONIA", "NORMAL"), "a"), labeled_set(of_classes("x", "y"), "b")
    with pytest.raises(UserError, match="dataset 'b' has the labels of none of the tasks cell"):
        choose_tasks([first, second], ["cell"])
    nothing = replace(first, samples=make_samples(["p", "q"], [{}, {"a": None}]))
    table = r"dataset 'a' has no labels to probe; name a table of them: --data\.labels\.csv=FILE, pack the set again"
    with registered(ProbeConfig), pytest.raises(UserError, match=table):
        choose_tasks([nothing], [])
    with pytest.raises(UserError, match="dataset 'mine' has only the class 'a'; a probe needs two classes"):
        choose_tasks([labeled_set(of_classes("a"))], [])
