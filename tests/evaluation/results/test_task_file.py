from pathlib import Path

import pytest

from evaluation.data.answers import answers_of
from evaluation.results.task_file import read_task
from evaluation.results.tasks import BUILT_IN, Question
from infra.errors import UserError


def test_a_file_describes_labels_with_a_policy_each(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: multilabel\nlabels: [Edema, Mass, Nodule]\nuncertain: zeros\nones: [Edema]\nunmentioned: absent\n"
        "test: [test, val]\n"
    )
    task = read_task(path)
    assert (task.name, task.kind, task.test_splits) == ("mine", "multilabel", ("test", "val"))
    assert task.questions == (
        Question("Edema", uncertain="ones", unmentioned="absent"),
        Question("Mass", uncertain="zeros", unmentioned="absent"),
        Question("Nodule", uncertain="zeros", unmentioned="absent"),
    )
    assert {question.uncertain for question in task.with_uncertain("ignore").questions} == {"ignore"}


def test_a_file_says_what_sets_call_a_label(tmp_path: Path) -> None:
    path = tmp_path / "lungs.yaml"
    path.write_text("kind: binary\npositive: Pneumonia\nnegative: No Finding\nnames: [[No Finding, NORMAL, healthy]]\n")
    task = read_task(path)
    assert task.names == (("No Finding", "NORMAL", "healthy"),)
    assert task.missing_in({"Pneumonia", "healthy"}) == []
    assert task.missing_in({"NORMAL"}) == ["Pneumonia"]
    answers = answers_of(task, [{"Pneumonia": 1, "NORMAL": 0}, {"Pneumonia": 0, "healthy": 1}, {"NORMAL": None}])
    assert answers.tolist() == [[1, 0, -2]]


def test_built_in_tasks_have_the_labels_of_their_name() -> None:
    counts = {name: len(tasks[0].questions) for name, tasks in BUILT_IN.items()}
    paper = ("cell", "chestxray14", "chexpert", "c19-cohen", "covidgr")
    assert counts == dict.fromkeys(paper, 1) | {"chexpert5": 5, "chexpert14": 14, "chestxray14-all": 14}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("labels: [a, b]", "kind is missing"),
        ("kind: multilable", "kind=multilable must be binary, multiclass or multilabel"),
        ("kind: multilabel\nlabel: [a, b]", "unknown key 'label' (did you mean 'labels'?)"),
        ("kind: multilabel\nlabels: a", "labels=a must be a list of words"),
        ("kind: multilabel\nlabels: [a]", "one label is a binary task"),
        ("kind: multiclass\nlabels: [a, b, a]", "the classes overlap: labels names 'a' twice"),
        ("kind: multiclass\nlabels: [a, b]\npositive: a", "list 'a' in labels"),
        ("kind: multilabel", "labels is missing"),
        ("kind: binary", "positive is missing"),
        ("kind: binary\nlabels: [a]", "name positive and negative"),
        ("kind: binary\npositive: a\nnegative: a", "the classes overlap: both are 'a'"),
        ("kind: multilabel\nlabels: [Edema, Mass]\nones: [edemas]", "no label of the task (did you mean 'Edema'?)"),
        ("kind: multilabel\nlabels: [a, b]\nones: [a]\nzeros: [a]", "both zeros and ones name 'a'"),
        ("kind: binary\npositive: a\nnames: [[a]]", "names has the group ['a']; give a label and its names"),
        ("kind: binary\npositive: mass\nnames: [[Mass, x]]", "no label of the task (did you mean 'mass'?)"),
        ("kind: multilabel\nlabels: [a, b]\nnames: [[a, x], [b, x]]", "names has 'x' twice"),
        ("kind: multilabel\nlabels: [a, b]\nnames: [[a, b]]", "names makes 'b' mean another label"),
        ("kind: [", "not valid YAML"),
    ],
)
def test_a_file_that_describes_no_task_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_task(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml does not exist"):
        read_task(tmp_path / "mine.yaml")
