from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.data.labeled_sets import LabeledSet
from evaluation.data.task_choice import choose_tasks
from evaluation.results.tasks import BUILT_IN, Question
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


def test_more_classes_are_multiclass_and_labels_that_go_together_are_multilabel() -> None:
    [[classes]] = choose_tasks([labeled_set(of_classes("a", "b", "c"))], [])
    assert (classes.kind, classes.labels) == ("multiclass", ["a", "b", "c"])
    [[labels]] = choose_tasks([labeled_set([{"a": 1, "b": 1}, {"a": 0, "b": 0}, {"a": -1, "b": None}])], [])
    assert (labels.kind, labels.labels) == ("multilabel", ["a", "b"])
    [[one]] = choose_tasks([labeled_set([{"a": 1}, {"a": 0}])], [])
    assert (one.kind, one.questions) == ("binary", (Question("a"),))


def test_a_dataset_of_the_paper_has_its_own_tasks() -> None:
    chestxray14 = labeled_set(of_classes("Pneumonia", "No Finding"), "nih", "chestxray14")
    assert choose_tasks([chestxray14], []) == [list(BUILT_IN["chestxray14"])]


def test_a_named_task_is_for_the_sets_that_have_all_of_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "sick.yaml"
    path.write_text("kind: multilabel\nlabels: [Mass, Edema]\n")
    three, two = labeled_set(of_classes("Mass", "Edema", "Hernia")), labeled_set(of_classes("PNEUMONIA", "NORMAL"))
    chosen = choose_tasks([three, two], [str(path), "cell"])
    assert [[task.name for task in of_set] for of_set in chosen] == [["sick"], ["cell"]]


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
    with pytest.raises(UserError, match="dataset 'a' has no labels to probe"):
        choose_tasks([nothing], [])
    with pytest.raises(UserError, match="dataset 'mine' has only the class 'a'; a probe needs two classes"):
        choose_tasks([labeled_set(of_classes("a"))], [])
