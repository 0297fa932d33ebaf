import csv
import io
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.report.c_path import c_path_table
from evaluation.report.detail_tables import comparison_table, detail_tables, headline_rows, subgroup_tables
from evaluation.report.findings import preset_sections
from evaluation.report.score_table import DECISION_HEADER, RANKING_HEADER, score_rows, score_tables
from evaluation.report.shift_table import shift_table
from evaluation.report.table_iii import table_iii
from evaluation.report.tables import Table, csv_text, latex, markdown, verdict
from evaluation.report.task_tables import label_table
from evaluation.results.datasets import Dataset, FittedSet, PartSize
from evaluation.results.notes import F1_NOTE, OLD_NOTE, PAPER_NOTE, SIMULATED_NOTE, describe, notes_on
from evaluation.results.paper import PUBLISHED, TABLE_III
from evaluation.results.results import Results
from evaluation.results.rows import Comparison, ProbeKind
from evaluation.results.scores import Difference, Estimate
from evaluation.results.task_scores import TaskOverlap, TaskScores
from tests.support.probe_results import in_paper_dataset, made_dataset, made_results, made_row

# Every cell of the paper's Table III, by row as printed: ACC, AUC, SEN, SPE, F1 at 1, 10 and 100 %.
PRINTED = {
    "cell": "85.6 96.6 99.5 62.4 76.4 86.9 96.9 99.2 66.2 79.1 91.5 97.7 98.7 79.5 87.5",
    "c19-cohen": "84.9 89.2 90.6 73.6 76.5 81.8 91.5 85.8 73.6 72.9 81.1 88.2 83 77.4 73.2",
    "covidgr": "79.5 86.6 83.5 75.6 78.8 77.8 86.0 80 75.6 77.4 78.4 87.1 83.5 73.3 77.3",
    "chestxray14": "71.5 79.1 72.8 71.4 83 71.2 78.1 72.0 71.2 82.9 71.4 78.4 71.3 71.5 83.0",
}

texts = st.text(st.characters(exclude_categories=("C", "Z")) | st.sampled_from(' &%$#_{}\\~^<>|*[]†"'), max_size=12)
tables = st.integers(1, 4).flatmap(
    lambda columns: st.builds(
        Table,
        texts,
        st.tuples(*[texts] * columns),
        st.lists(st.tuples(*[texts] * columns), max_size=4),
        st.integers(0, columns),
        st.lists(texts, max_size=2),
    )
)


HEADER = (*RANKING_HEADER, *DECISION_HEADER)


def cells_of(results: Results, preset: str = "gazda2021") -> list[tuple[str, ...]]:
    [dataset] = [dataset for dataset in results.datasets if dataset.preset == preset]
    return [(*row.ranking, *row.decisions) for row in score_rows(results, dataset, results.rows_of(dataset))]


def simulated(preset: str = "gazda2021") -> Dataset:
    return made_dataset(preset, label="cell (simulated)", simulated=True)


@pytest.mark.parametrize("name", PRINTED)
def test_figures_of_the_paper_are_those_it_prints(name: str) -> None:
    assert [value for row in TABLE_III[name].values() for value in row] == [float(x) for x in PRINTED[name].split()]
    assert set(TABLE_III) == set(PUBLISHED) == set(PRINTED)


def test_f1_of_the_paper_is_that_of_the_healthy_class() -> None:
    """From the counts of Cell's test part and the SEN and SPE printed, at every fraction."""
    for _, _, sen, spe, f1 in TABLE_III["cell"].values():
        missed, recognised = 390 * (1 - sen / 100), 234 * spe / 100
        assert 100 * 2 * recognised / (recognised + 234 + missed) == pytest.approx(f1, abs=0.15)


@pytest.mark.parametrize(("fraction", "auc"), [(1, "96.6"), (10, "96.9"), (100, "97.7")])
def test_paper_row_follows_our_rows_with_the_fraction_of_the_run(fraction: int, auc: str) -> None:
    *ours, paper = cells_of(made_results(fraction_percent=fraction))
    assert [row[1] for row in ours][:2] == ["32 x 32 raw pixels", "border of the image"]
    assert (paper[1], paper[HEADER.index("AUC")]) == (f"paper, {fraction} % of CheXpert", auc)
    assert paper[HEADER.index("F1")] == ""
    assert paper[HEADER.index("F1(healthy)")] == f"{TABLE_III['cell'][fraction][4]:.1f}"


@pytest.mark.parametrize(
    "dataset",
    [
        made_dataset("rigorous"),
        simulated(),
        made_dataset("gazda2021", name="chexpert"),
        replace(in_paper_dataset("chestxray14"), balance="view"),
        replace(in_paper_dataset("chestxray14"), negative="No Finding"),
        replace(in_paper_dataset("cell"), split="5-fold by patient"),
    ],
    ids=["another protocol", "simulated", "another dataset", "balanced otherwise", "other classes", "split ignored"],
)
def test_paper_row_is_absent_if_it_does_not_compare(dataset: Dataset) -> None:
    results = made_results([dataset])
    assert "paper" not in {row.style for row in score_rows(results, dataset, results.rows)}
    assert PAPER_NOTE not in results.notes
    assert F1_NOTE not in results.notes


def test_scores_are_in_percent_with_interval_and_fits() -> None:
    results = made_results()
    by_features = {row[1]: dict(zip(HEADER, row, strict=True)) for row in cells_of(results)}
    last = by_features["epoch 24"]
    assert last["kNN AUC"] == "91.3"
    row = score_rows(results, results.datasets[0], results.rows_of(results.datasets[0]))[9]
    assert row.ranking[3:9] == ("98.3", "97.3-99.3", "96.3", "94.3-98.3", "97.3", "95.3-99.3")
    assert row.decisions[2:] == (
        *("86.3", "84.3-88.3", "98.3", "96.3-100.0", "66.3", "64.3-68.3"),
        *("90.3", "88.3-92.3", "78.3", "76.3-80.3"),
    )
    for table in score_tables("Scores", [row]):
        assert {len(cells) for cells in table.cells} == {len(table.header)}
    assert (last["C"], last["not converged"]) == ("1*", "40 of 49")
    assert by_features["paper, 100 % of CheXpert"]["not converged"] == ""


def test_range_of_c_is_given_when_rounds_chose_differently() -> None:
    dataset = made_dataset("rigorous", rounds=3)
    results = made_results([dataset])
    row = made_row(dataset, "epoch 1", "checkpoint", 0.9, c=[0.01, 1.0, 0.1])
    finetuned = made_row(dataset, "epoch 1, fine-tuned", "finetuned", 0.9, c=[], fits=0, knn_auc=None)
    rows = score_rows(results, dataset, [row, finetuned])
    assert [(row.ranking[2], *row.ranking[-2:]) for row in rows] == [
        ("0.01 to 1", "85.0", "0 of 36"),
        ("", "", ""),
    ]


def test_no_interval_is_shown_when_none_was_asked_for() -> None:
    dataset = made_dataset("rigorous")
    row = made_row(dataset, "epoch 1", "checkpoint", 0.9)
    bare = replace(row, scores=replace(row.scores, auc=Estimate(0.9)))
    assert score_rows(made_results(), dataset, [bare])[0].ranking[6] == ""


def test_dataset_that_pretraining_saw_is_marked_and_the_mark_is_explained() -> None:
    seen = made_dataset("gazda2021", pretrained_images=32, pretrained_patients=30)
    results = made_results([seen])
    assert {row.ranking[0] for row in score_rows(results, seen, results.rows)} == {"cell †"}
    [legend] = [note for note in results.notes if note.startswith("†")]
    assert "pretraining saw 32 test images and 30 test patients" in legend
    assert "†" not in "".join(made_results().notes)
    unknown = made_results([made_dataset("gazda2021", pretrained_images=None, pretrained_patients=None)])
    assert any("it is unknown whether pretraining saw the test images" in note for note in unknown.notes)


@pytest.mark.parametrize(
    ("kind", "auc", "words"),
    [
        ("shuffled", Estimate(0.512, 0.441, 0.583), "AUC 0.512 (0.441-0.583): 0.5 is within its interval."),
        ("shuffled", Estimate(0.6, 0.55, 0.65), "once in 20 times; otherwise code reads labels of the test part."),
        ("shuffled_over_all", Estimate(0.6, 0.55, 0.65), "copies of images are in both parts; 0.550 by nearest"),
        ("shuffled_over_all", Estimate(0.512), "AUC 0.512; chance is 0.5; 0.462 by nearest neighbors."),
    ],
)
def test_note_says_how_shuffled_labels_score_and_what_they_find(kind: ProbeKind, auc: Estimate, words: str) -> None:
    dataset = made_dataset("rigorous")
    row = made_row(dataset, "epoch 24, labels shuffled", kind, auc.value)
    results = replace(made_results([dataset]), rows=[replace(row, scores=replace(row.scores, auc=auc))])
    [note] = [
        note for note in notes_on(results) if note.startswith("cell, rigorous, epoch 24, labels shuffled: AUC 0.")
    ]
    assert words in note


@pytest.mark.parametrize(("stages", "says"), [(["64@4"], True), (["64@3"], False), ([], False)])
def test_note_says_which_checkpoints_were_trained_at_another_size_than_they_are_probed_at(
    stages: list[str], says: bool
) -> None:
    results = made_results()  # with a checkpoint of epoch 4
    assert results.run is not None
    run = replace(results.run, recipe={"train.stages": stages}, probed_px=96)
    notes = [note for note in notes_on(replace(results, run=run)) if "(train.stages=[64@4])" in note]
    assert bool(notes) == says
    assert all("All checkpoints are probed at 96 px" in note for note in notes)


def test_note_names_the_classes_in_which_the_official_parts_are_told_apart() -> None:
    [note] = [note for note in made_results().notes if "another distribution" in note]
    assert note.startswith("cell: the official test part is drawn from another distribution")
    assert "AUC 0.93 by 32 x 32 raw pixels among NORMAL (at random 0.54). So" in note
    assert "PNEUMONIA" not in note
    shifts = [replace(shift, auc=shift.null) for shift in made_results().shifts]
    assert not any("another distribution" in note for note in notes_on(replace(made_results(), shifts=shifts)))


def test_note_says_of_two_sets_that_they_are_told_apart_and_whose_images_chose_everything() -> None:
    fitted = FittedSet("nih", "chestxray14", "shards/nih", "0" * 64, "chestxray14", "Pneumonia", "No Finding", "none")
    pair = made_dataset("rigorous", label="cell, fitted on nih", split="external", fitted_on=fitted)
    results = made_results([pair])
    assert any(note.startswith("cell, fitted on nih: a classifier tells the two sets apart") for note in results.notes)
    assert any(
        "from images of nih alone; the test part is every image of the other set" in note for note in results.notes
    )
    assert not any("official" in note or "paper" in note for note in results.notes)
    assert shift_table(results, pair).caption.startswith("cell, fitted on nih, rigorous: tested set or fitted set?")


def test_a_control_that_is_missing_is_named_with_the_reason() -> None:
    dataset = made_dataset("rigorous")
    shuffled = made_row(dataset, "epoch 24, labels shuffled within each part", "shuffled", 0.5)
    results = made_results([dataset])
    rows = [row for row in results.rows if row.kind != "shuffled_over_all"]
    notes = notes_on(replace(results, rows=[*rows, shuffled], shifts=results.shifts[:1]))
    for words in (
        "cell, rigorous: the control with labels shuffled over all patients is missing, because there are so few",
        "cell: the control size, file and gray level is missing, because they are unknown, or alike in all images.",
        "cell: the control that tells development and test part apart is missing among PNEUMONIA, because a part has",
    ):
        assert any(note.startswith(words) for note in notes)
    assert not any("view, sex and age is missing" in note for note in notes)
    trained = [row for row in results.rows if row.kind == "checkpoint"]
    assert not any("missing" in note for note in notes_on(replace(results, rows=trained, shifts=[])))


def test_missing_control_of_a_task_with_several_labels_names_the_label_that_was_asked() -> None:
    asked = [made_dataset("rigorous", label=f"mine: {name}", question=name, positive=name) for name in "ab"]
    shuffled = [made_row(dataset, "shuffled", "shuffled", 0.5) for dataset in asked]
    results = made_results(asked)
    results = replace(results, rows=[*results.rows, *shuffled])
    [of_b] = [shift for shift in results.shifts if (shift.dataset, shift.group) == ("mine: b", "NORMAL")]
    control = "the control that tells development and test part apart is missing"
    assert any(note.startswith(f"mine: b: {control} among b, ") for note in notes_on(replace(results, shifts=[of_b])))
    assert any(
        note.startswith(f"mine: {control}, because for each label ") for note in notes_on(replace(results, shifts=[]))
    )


def test_tables_without_controls_do_not_speak_of_them() -> None:
    results = made_results([made_dataset("rigorous")])
    [section] = preset_sections(results)
    assert "the last checkpoint and its controls. C is chosen" in section.headline[0].caption
    trained = [row for row in results.rows if row.kind == "checkpoint"]
    [bare] = preset_sections(replace(results, rows=trained))
    assert "the last checkpoint. C is chosen" in bare.headline[0].caption
    task = TaskScores("mine", "rigorous", "multilabel", ["a"], ["cell"], {}, "official", 9, 9, False, [])
    asked = made_dataset("rigorous", label="mine: a", question="a")
    [several] = preset_sections(replace(made_results([asked]), tasks=[replace(task, datasets=["mine: a"])]))
    [row] = label_table(made_results([asked]), replace(task, datasets=["mine: a"])).cells
    assert (row[2:4], row[8]) == (("0.001", "98.3"), "0 of 36")  # what notes speak of
    assert several.headline == several.everything == []  # no header without rows
    assert "control" not in label_table(results, task).caption


def test_overlap_of_a_task_with_several_labels_counts_each_image_once() -> None:
    asked = [
        made_dataset(
            "rigorous", label=f"mine: {name}", question=name, pretrained_images=count, pretrained_patients=count
        )
        for name, count in (("a", 30), ("b", 20))
    ]
    labels = [dataset.label for dataset in asked]
    overlap = TaskOverlap(40, 35, {"cell, test": 40})
    task = TaskScores("mine", "rigorous", "multilabel", ["a", "b"], labels, {}, "official", 90, 80, True, [], overlap)
    results = replace(made_results(asked), tasks=[task])
    [note] = [note for note in notes_on(results) if note.startswith("†")]
    assert note == (
        "† mine: pretraining saw 40 test images and 35 test patients, each counted once for all labels (40 in cell, "
        "test), without labels, which may flatter the checkpoints."
    )
    [older] = [n for n in notes_on(replace(results, tasks=[replace(task, overlap=None)])) if n.startswith("†")]
    assert older.startswith("† mine: a: pretraining saw 30 test images")


def test_path_of_c_shows_validation_its_error_and_test() -> None:
    results = made_results()
    by_paper, strict = results.datasets
    assert not c_path_table(by_paper, results.rows_of(by_paper)).cells
    table = c_path_table(strict, headline_rows(results, strict)[:1])
    assert table.header == ("features", "AUC", "0.001", "0.01", "0.1")
    assert [cells[1:] for cells in table.cells] == [
        ("validation", "98.18", "98.83", "98.83"),
        ("its standard error", "0.08", "0.08", "0.08"),
        ("test", "98.2", "98.7", "97.8"),
    ]


def test_notes_mention_convergence_and_edges_only_if_they_occur() -> None:
    by_paper, strict = made_results([made_dataset("gazda2021")]), made_results([made_dataset("rigorous")])
    for words in ("Some fits reached the iteration limit", "* C is an end of the grid"):
        assert any(words in note for note in by_paper.notes)
        assert not any(words in note for note in strict.notes)


def test_description_counts_both_parts_or_the_whole_in_cross_validation() -> None:
    official = describe(made_dataset("gazda2021", excluded={"label uncertain": 3, "both labels": 0}))
    assert official.startswith("cell, gazda2021: official split; development 5232 images of 2790 patients (3883 PNEUM")
    assert official.endswith("; left out: 3 label uncertain")
    crossed = describe(made_dataset("rigorous", split="5-fold by patient", rounds=5))
    assert "tested in turn, in 5 rounds, 624 images" in crossed
    assert "development" not in crossed


def test_detail_tables_show_only_what_was_measured() -> None:
    results = made_results()
    by_paper, strict = results.datasets
    assert detail_tables(results, by_paper) == []
    captions = [table.caption for table in detail_tables(results, strict)]
    words = (
        "minus that of others",
        "official test part or development part?",
        "at every C",
        "Brier score",
        "subgroups",
        "widest gap",
        "only some development patients",
    )
    assert all(word in caption for word, caption in zip(words, captions, strict=True))
    for table in detail_tables(results, strict):
        assert {len(row) for row in table.cells} == {len(table.header)}


def test_subgroups_without_scores_are_counted_for_one_question_and_left_out_for_several() -> None:
    for question, groups in (("", ["F", "M", "unknown"]), ("a", ["F", "M"])):
        dataset = made_dataset("rigorous", question=question)
        table, _ = subgroup_tables(made_results([dataset]), dataset)
        assert [row[1] for row in table.cells] == groups


def test_difference_is_called_shown_only_when_its_adjusted_p_value_is_small() -> None:
    results = made_results([made_dataset("rigorous")])
    table = comparison_table(results, results.datasets[0])
    assert [row[1:] for row in table.cells] == [
        ("32 x 32 raw pixels", "+5.6", "+3.4 to +8.0", "<0.001", "<0.001", "these weights: better"),
        ("border of the image", "+18.9", "+1.1 to +36.7", "0.020", "0.040", "these weights: better"),
        ("untrained backbone", "+1.5", "+0.1 to +2.9", "0.040", "0.060", "not shown to differ"),
    ]
    [note] = table.notes
    assert "adjusted for the 3 comparisons of this table" in note


def test_verdict_says_worse_where_the_last_checkpoint_is() -> None:
    comparison = Comparison("cell", "rigorous", "epoch 24", "32 x 32 raw pixels", Difference(-0.02, p=0.01), 0.01)
    assert verdict(comparison) == "these weights: WORSE"


def test_delongs_figures_stand_beside_the_bootstraps_where_they_apply() -> None:
    results = made_results([made_dataset("rigorous")])
    first, *others = results.comparisons
    checked = replace(first, delong=Difference(0.056, 0.035, 0.077, "DeLong", 0.0004))
    table = comparison_table(replace(results, comparisons=[checked, *others]), results.datasets[0])
    assert [row[5:7] for row in table.cells] == [("+3.5 to +7.7", "<0.001"), ("", ""), ("", "")]
    assert table.header[5:7] == ("DeLong 95 %", "DeLong p")
    assert any(note.startswith("DeLong: ") for note in table.notes)


def test_results_of_version_2_give_no_verdict_and_say_so() -> None:
    results = made_results([made_dataset("rigorous")])
    plain = [
        Difference(item.difference.value, item.difference.low, item.difference.high) for item in results.comparisons
    ]
    old = [replace(item, difference=each, p_holm=None) for item, each in zip(results.comparisons, plain, strict=True)]
    table = comparison_table(replace(results, version=2, comparisons=old), results.datasets[0])
    assert {row[-3:] for row in table.cells} == {("", "", "")}
    assert table.notes == [OLD_NOTE]


@pytest.mark.parametrize(
    ("validation", "test", "parts"),
    [
        (Estimate(0.99, 0.98, 0.995), Estimate(0.95, 0.93, 0.97), True),
        (Estimate(0.99, 0.96, 0.995), Estimate(0.95, 0.93, 0.97), False),
        (Estimate(0.90, 0.89, 0.92), Estimate(0.95, 0.93, 0.97), True),
        (Estimate(0.99), Estimate(0.95, 0.93, 0.97), False),
        (None, Estimate(0.95, 0.93, 0.97), False),
    ],
)
def test_note_says_where_validation_and_test_part(validation: Estimate | None, test: Estimate, parts: bool) -> None:
    dataset = made_dataset("rigorous")
    row = made_row(dataset, "epoch 1", "checkpoint", 0.9, step=5, validation=validation)
    results = replace(made_results([dataset]), rows=[replace(row, scores=replace(row.scores, auc=test))])
    notes = [note for note in notes_on(results) if "part by more than their intervals" in note]
    assert len(notes) == parts
    if parts:
        assert "and test AUC 0.950 (0.930-0.970) part by more than their intervals" in notes[0]
    crossed = replace(results, datasets=[replace(dataset, rounds=5)])
    assert not [note for note in notes_on(crossed) if "part by more than their intervals" in note]


def test_table_iii_has_for_each_fraction_our_row_above_that_of_the_paper() -> None:
    table = table_iii([made_results(fraction_percent=100), made_results(fraction_percent=1)], "gazda2021")
    assert [row[1:3] for row in table.cells] == [
        ("ours, epoch 24", "1 %"),
        ("paper", "1 %"),
        ("paper", "10 %"),
        ("ours, epoch 24", "100 %"),
        ("paper", "100 %"),
        ("published before [42]", ""),
    ]
    ours, paper, *_, published = table.cells
    assert ours[3:] == ("86.3", "96.3", "94.3-98.3", "98.3", "66.3", "78.3")  # the F1 of the healthy class
    assert paper[3:] == ("85.6", "96.6", "", "99.5", "62.4", "76.4")
    assert published[3:5] == ("92.8", "96.8")
    assert "F1 is that of the healthy class" in table.caption
    assert any(note.startswith("[42] Kermany") for note in table.notes)


@pytest.mark.parametrize(
    ("name", "figures", "note"),
    [
        ("covidgr", ("76.16", "na"), "[19] Tabik et al. 2020."),
        ("chestxray14", ("na", "65.8"), "[9] Wang et al. 2017 (pneumonia as part of a multi-class classification)."),
        ("c19-cohen", ("na", "na"), "No earlier result is published on c19-cohen: others combine"),
    ],
)
def test_published_results_are_those_that_the_paper_names(name: str, figures: tuple[str, str], note: str) -> None:
    dataset = in_paper_dataset(name)
    table = table_iii([made_results([dataset])], "gazda2021")
    assert table.cells[-1][3:5] == figures
    assert any(line.startswith(note) for line in table.notes)


def test_acc_and_f1_are_not_set_beside_the_papers_if_another_share_of_the_test_part_is_diseased() -> None:
    dataset = replace(in_paper_dataset("chestxray14"), test=PartSize(240, 200, 140, 100))
    results = made_results([dataset])
    ours, paper = table_iii([results], "gazda2021").cells[-3:-1]
    assert (ours[1], paper[1]) == ("ours, epoch 24", "paper")
    assert [ours[column] == "" for column in range(3, 9)] == [True, False, False, False, False, True]
    assert "" not in (paper[3], paper[8])
    note = "58.3 % in our test part, 2.1 to 2.5 % in the paper's."
    assert any(line.endswith(note) for line in table_iii([results], "gazda2021").notes)
    *_, last, in_scores = score_rows(results, dataset, results.rows)
    shown = [dict(zip(HEADER, (*row.ranking, *row.decisions), strict=True)) for row in (last, in_scores)]
    assert [row["ACC"] != "" for row in shown] == [row["F1(healthy)"] != "" for row in shown] == [True, False]
    assert shown[1]["AUC"] == "78.4"
    assert any(line.endswith(note) for line in results.notes)
    same = made_results([in_paper_dataset("chestxray14")])
    assert not any("depend on the share" in note for note in (*same.notes, *table_iii([same], "gazda2021").notes))


def test_table_iii_keeps_simulated_images_apart_from_the_paper() -> None:
    table = table_iii([made_results([simulated()])], "gazda2021")
    assert [row[:2] for row in table.cells] == [("cell (simulated)", "ours, epoch 24")]
    assert SIMULATED_NOTE in table.notes
    assert PAPER_NOTE not in table.notes


def test_table_iii_marks_only_the_run_that_saw_the_test_part_and_says_when_tests_differ() -> None:
    seen = made_dataset("gazda2021", pretrained_images=1, test=PartSize(600, 400, 380, 220))
    table = table_iii([made_results(), made_results([seen], fraction_percent=10)], "gazda2021")
    assert [row[2] for row in table.cells if row[0] == "cell †"] == ["10 %"]
    assert "cell: the runs were tested on different images (600, 624)." in table.notes


@given(tables)
def test_csv_reads_back_to_the_same_cells(table: Table) -> None:
    read = list(csv.reader(io.StringIO(csv_text(table), newline="")))
    assert [[cell.removeprefix("'") for cell in row] for row in read] == [
        [cell.removeprefix("'") for cell in row] for row in (table.header, *table.cells)
    ]


def test_no_cell_of_a_csv_is_a_formula_and_numbers_stay_numbers() -> None:
    cells = ("=cmd|' /C calc'!A0", "@SUM(1)", "-2+3+cmd|' /C calc'!A0", "+1.5", "-0.4 to +3.3", "-", "96.3", "a=b")
    guarded = ["'" + cell if cell[0] in "=@" or cell in ("-", cells[2]) else cell for cell in cells]
    text = csv_text(Table("", ("",) * len(cells), [cells]))
    assert list(csv.reader(io.StringIO(text)))[1] == guarded


def test_cells_of_a_markdown_table_remain_text() -> None:
    text = markdown(Table("", ("a", "b"), [("1 | 2", "<script>"), ("\x1b]0;title\x07", "`x` \\")], text_columns=2))
    rows = [re.split(r"(?<!\\)\|", line) for line in text.split("\n")[2:]]
    assert [[cell.strip() for cell in row[1:-1]] for row in rows] == [
        [r"1 \| 2", r"\<script>"],
        ["]0;title", r"\`x\` \\"],
    ]


@given(tables)
def test_markdown_has_one_line_a_row_and_columns_of_one_width(table: Table) -> None:
    lines = markdown(table).split("\n")
    assert len(lines) == len(table.cells) + 2
    assert len({len(line) for line in lines}) == 1
    if table.cells:  # tabulate aligns no column that is empty
        assert lines[1].count("-:") == len(table.header) - table.text_columns


@given(tables)
def test_latex_is_well_formed_whatever_the_cells_hold(table: Table) -> None:
    body = "\n".join(latex(table).split("\n")[1:])  # the first line is a comment
    bare = re.sub(r"\\[\\&%$#_{}]", "", body)  # what is escaped is text
    assert not re.search(r"[%$#_~^<>|†]", bare)
    depth = 0
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    for name in ("table", "tabular"):
        assert body.count(f"\\begin{{{name}}}") == body.count(f"\\end{{{name}}}") == 1
    rows = [line for line in body.split("\n") if line.endswith(r" \\")]
    assert len(rows) == len(table.cells) + 1
    [spec] = re.findall(r"\\begin{tabular}{([lr]+)}", body)
    assert spec == "l" * table.text_columns + "r" * (len(table.header) - table.text_columns)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(spec) - 1
        assert not re.match(r"\s*[*\[]", row)


def test_latex_commands_are_known_ones_and_rules_part_the_datasets() -> None:
    others = [
        made_dataset("gazda2021"),
        replace(in_paper_dataset("covidgr"), pretrained_images=5),
    ]
    text = latex(table_iii([made_results(others)], "gazda2021"))
    known = {"usepackage", "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule"}
    assert set(re.findall(r"\\([a-z]+)", text)) == known | {
        "par",
        "smallskip",
        "footnotesize",
        "setlength",
        "tabcolsep",
        "textdagger",
    }
    assert text.count(r"\midrule") == 2  # below the header and between the datasets, whether marked or not
    assert r"100 \%" in text
