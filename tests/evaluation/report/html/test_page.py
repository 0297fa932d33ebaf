import base64
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from PIL import Image

from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.report.html.blocks import Facts, Missing, Notes, Paragraph, Picture
from evaluation.report.html.cost import cost_section
from evaluation.report.html.page import report
from evaluation.report.html.run_facts import read_facts
from evaluation.report.html.run_sections import curves_section
from evaluation.report.html.summary import summary_section
from evaluation.results.embedding_records import WARNING
from evaluation.results.fault_records import FAULTS, FAULTS_VERSION, Faults, QuestionFaults, read_faults
from evaluation.results.picture_records import ATTENTION, write_pictures_record
from evaluation.results.results import Results, write_results
from evaluation.results.scores import Estimate
from infra.errors import UserError
from infra.monitoring.hardware import Hardware
from tests.support.fault_server import serving
from tests.support.html_page import Page
from tests.support.made_pictures import KEY, PATIENT, made_jpeg, write_made_pictures
from tests.support.probe_results import made_dataset, made_results, made_row, made_scores, made_selection

MakeRun = Callable[..., Path]


def page_of(run: Path, results: Results | None = None) -> Page:
    if results is not None:
        write_results(run, results)
    return Page(report(run).read_text())


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> Path:
    """A run with all that a probe can find, and its page."""
    run = make_run(tmp_path_factory.mktemp("full") / "run", shards)
    write_results(run, made_results())
    (run / "selection.json").write_bytes(msgspec.json.encode(made_selection()))
    report(run)
    return run


@pytest.fixture(scope="module")
def full_page(full_run: Path) -> Page:
    return Page((full_run / "report.html").read_text())


def test_report_of_a_real_probe_shows_its_rows_next_to_the_paper(run: Path, shards: Path) -> None:
    small = ProbeConfig(
        run,
        ProbeData([str(shards)]),
        checkpoints="last",
        controls=False,
        few_labels=False,
        executor="torchvision",
        search="serial",
        folds=2,
        bootstrap_resamples=100,
    )
    probe(small)
    page = page_of(run)
    for words in ("cell, gazda2021: AUC", "cell, rigorous: AUC", "at epoch 2", "paper, 100 % of CheXpert", "97.7"):
        assert words in page.text
    assert "PNEUMONIA against NORMAL, official split" in page.text
    assert "global_batch: 16" in page.text


def test_report_has_every_section_and_figure_when_everything_was_measured(full_page: Page) -> None:
    sections = [
        *(
            "summary",
            "views",
            "attention",
            "faults",
            "curves",
            "scores",
            "selection",
            "embeddings",
            "calibration",
            "subgroups",
            "audit",
        ),
        *("data", "configuration", "cost", "checklists", "files"),
    ]
    assert full_page.attributes("section", "aria-labelledby") == full_page.attributes("h2", "id") == sections
    assert [link for link in full_page.attributes("a", "href")[1:] if link] == [f"#{anchor}" for anchor in sections]
    described = [words.partition(" ")[0] for words in full_page.attributes("img", "alt")]
    assert described == ["Line:", "AUC", "Accuracy", "AUC", "Reliability", "Decision"]
    assert all(len(words) > 60 for words in full_page.attributes("img", "alt"))
    for words in ("Brier score", "widest gap between two subgroups", "only some development patients", "regret"):
        assert words in full_page.text
    assert "Chosen: epoch 20; its LiDAR of 7.7 is the highest of 6 checkpoints." in full_page.text


def test_finding_compares_with_each_control_and_says_whether_the_difference_is_shown(full_page: Page) -> None:
    assert (
        "cell, gazda2021: AUC 96.3 % (94.3-98.3) at epoch 24; 5.6 points above the 32 x 32 raw pixels (9"
        in full_page.text
    )
    assert "5.6 points above the 32 x 32 raw pixels (90.7 %; difference +3.4 to +8.0)" in full_page.text
    assert (
        "1.5 points above the untrained backbone (94.8 %; difference +0.1 to +2.9, not shown to differ: p 0.060, Holm)"
        in full_page.text
    )


def test_finding_says_below_when_a_control_is_better(run: Path) -> None:
    dataset = made_dataset("gazda2021")
    rows = [made_row(dataset, "untrained backbone", "untrained", 0.9)]
    rows.append(made_row(dataset, "epoch 1", "checkpoint", 0.8, epoch=1.0, step=5))
    page = page_of(run, replace(made_results([dataset]), rows=rows))
    assert "10.0 points BELOW the untrained backbone" in page.text


def test_finding_names_no_side_where_the_shown_digits_are_equal_and_fits_the_article(run: Path) -> None:
    dataset = made_dataset("gazda2021")
    rows = [made_row(dataset, "untrained backbone", "untrained", 0.8004)]
    rows.append(made_row(dataset, "epoch 1", "checkpoint", 0.8, epoch=1.0, step=5))
    rows.append(made_row(dataset, "epoch 1, fine-tuned", "finetuned", 0.75))
    text = page_of(run, replace(made_results([dataset]), rows=rows)).text
    assert "at epoch 1; level with the untrained backbone (80.0 %" in text
    assert "; 5.0 points above epoch 1, fine-tuned (75.0 %" in text


def test_report_leaves_out_what_was_not_measured(run: Path) -> None:
    dataset = made_dataset("gazda2021")
    row = made_row(dataset, "epoch 1", "checkpoint", 0.8, epoch=1.0, step=5)
    bare = replace(row, scores=replace(made_scores(0.8), auc=Estimate(0.8), acc=Estimate(0.7)))
    page = page_of(run, replace(made_results([dataset]), rows=[bare]))
    assert [words.partition(" ")[0] for words in page.attributes("img", "alt")] == ["Line:", "AUC"]
    for words in (
        "Calibration: not measured",
        "Scores in subgroups: not measured",
        "No checkpoint was chosen without labels",
        "The probe has left no pictures",
        "no samples and views",
        "The machine is not recorded",
    ):
        assert words in page.text


def test_report_of_controls_alone_says_that_no_checkpoint_was_probed(run: Path) -> None:
    dataset = made_dataset("rigorous")
    only = replace(made_results([dataset]), rows=[made_row(dataset, "untrained backbone", "untrained", 0.9)])
    assert "cell, rigorous: no checkpoint was probed." in page_of(run, only).text


def test_report_loads_nothing_from_the_network_and_uses_each_id_once(full_run: Path, full_page: Page) -> None:
    assert ("html", {"lang": "en"}) in full_page.tags
    links = [values.get(name) for _, values in full_page.tags for name in ("src", "href") if values.get(name)]
    assert links
    assert not [link for link in links if link and not link.startswith("data:") and re.match(r"[a-z]+:|//|/", link)]
    assert not [tag for tag, _ in full_page.tags if tag in ("link", "iframe", "object")]
    assert not re.search(r"url\((?!#)|@import", (full_run / "report.html").read_text())
    [policy] = [values["content"] or "" for tag, values in full_page.tags if "http-equiv" in values]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    ids = [values["id"] for _, values in full_page.tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_pictures_are_drawn_with_the_figures_in_words(full_page: Page) -> None:
    for uri in full_page.attributes("img", "src"):
        drawn = ElementTree.fromstring(base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")))
        assert drawn.tag.endswith("svg")
    _, auc, accuracy, *_ = full_page.attributes("img", "alt")
    assert "96.3 % at epoch 24" in auc
    assert "untrained backbone 94.8 %" in auc
    assert "the paper" not in auc  # it is of rigorous, another protocol than the paper's
    assert "the paper 91.5 %" in accuracy


def test_same_results_give_the_same_page(full_run: Path) -> None:
    before = (full_run / "report.html").read_bytes()
    assert report(full_run).read_bytes() == before


def test_report_of_simulated_data_leaves_the_paper_out(run: Path) -> None:
    datasets = [made_dataset(preset, label="cell (simulated)", simulated=True) for preset in ("gazda2021", "rigorous")]
    page = page_of(run, made_results(datasets))
    assert "cell (simulated)" in page.text
    assert "prove nothing about medicine" in page.text
    assert "97.7" not in page.text
    assert "Gazda, Gazda" not in page.text
    assert not [words for words in page.attributes("img", "alt") if "the paper" in words]


def test_report_says_what_is_missing_when_the_run_has_only_begun(
    tmp_path: Path, shards: Path, make_run: MakeRun
) -> None:
    page = page_of(make_run(tmp_path / "new", shards, steps=()))
    for words in ("not been probed yet", "No step has been logged yet", "No checkpoint has been written yet"):
        assert words in page.text


HOSTILE = (
    "<i>cell</i>",
    "<script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    "=HYPERLINK(1)",
    r"$\input{x}$ \(x\)",
    "{{ 7 * 7 }}{% raw %}",
)


def test_report_shows_what_others_wrote_as_text(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "<b>&run", shards)
    words = " ".join(HOSTILE)
    dataset = made_dataset("rigorous", label=words, folder=words, excluded={words: 2}, positive=words)
    results = replace(made_results([dataset]), command=words, notes=[words], protocol={words: {words: words}})
    page = page_of(run, results)
    assert "<b>&run" in page.text
    for text in HOSTILE:
        assert text in page.text
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"i", "b"} & {tag for tag, _ in page.tags}
    assert not [values for _, values in page.tags if any(name.startswith("on") for name in values)]


def test_report_opens_no_url_of_the_run(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", shards)
    config = run / "config.yaml"
    with serving(shards.parent) as server:
        config.write_text(config.read_text().replace(str(shards), f"{server.url}/shards"))
        page = page_of(run)
        assert server.requests == []
        assert "not on this machine" in page.text
        assert f"{server.url}/shards" in page.text


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml does not exist; name a folder"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["results.json", "selection.json"])
def test_invalid_files_are_refused(run: Path, name: str) -> None:
    (run / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{name} cannot be read.*probe the run again"):
        report(run)


def summary_of(run: Path, results: Results | None = None) -> str:
    facts = replace(read_facts(run, shows_images=True), results=results)
    blocks = summary_section(facts).blocks
    texts = [[block.text] if isinstance(block, Paragraph | Missing) else block.items for block in blocks]  # type: ignore[union-attr]
    return " ".join(str(text) for of_block in texts for text in of_block)


def test_summary_says_what_was_learned_and_what_is_not_shown(run: Path) -> None:
    words = summary_of(run, made_results())
    for expected in (
        "run is a resnet18 that learned from 80 chest radiographs without any diagnosis",
        "It has done 2.00 of 100 epochs",
        "tested on 624 images of 427 patients: PNEUMONIA against NORMAL",
        "ranks the two correctly in 96.3 of 100 cases (AUC; 95 % interval 94.3 to 98.3; guessing gives 50).",
        "before any training reaches 94.8; training changed that by +1.5 points (95 % interval +0.1 to +2.9), which is "
        "not shown to be a difference: it may be by chance among the comparisons made.",
        "Without any network, 32 x 32 raw pixels alone reaches 90.7.",
        "How it does at another hospital",
        "one pretraining with one seed",
        "Any benefit for patients",
    ):
        assert expected in words


def test_summary_calls_an_interval_that_includes_chance_by_its_name(run: Path) -> None:
    dataset = made_dataset("rigorous")
    row = made_row(dataset, "epoch 1", "checkpoint", 0.51, epoch=1.0, step=5)
    pixels = made_row(dataset, "32 x 32 raw pixels", "pixels", 0.6)
    words = summary_of(run, replace(made_results([dataset]), rows=[row, pixels], comparisons=[]))
    assert "The interval includes 50: this is not shown to be better than guessing." in words
    assert "The same network without training was not probed" in words
    assert "which is no worse: the task can be solved without what was learned." in words
    assert "has not been probed" in summary_of(run)


def test_hours_leave_out_the_pauses_between_starts(run: Path) -> None:
    pretraining = read_facts(run, shows_images=True).pretraining
    assert pretraining is not None
    assert pretraining.hours is None  # no speed was logged
    lines = [
        {"step": step, "time_s": 9000.0 * step, "speed/images_per_s": speed} for step, speed in ((10, 16.0), (30, 32.0))
    ]
    hours = replace(pretraining, metrics=lines).hours
    assert hours == pytest.approx((10 * 16 / 16 + 20 * 16 / 32) / 3600)


def test_curves_show_similarities_chance_and_a_collapse(run: Path) -> None:
    facts = read_facts(run, shows_images=True)
    assert facts.pretraining is not None
    line = {"step": 5, "epoch": 1.0, "loss": 3.0, "loss/chance": 3.25, "run/collapsed": 1.0}
    similar = {"health/positive_similarity": 0.99, "health/negative_similarity": 0.98}
    pretraining = replace(facts.pretraining, metrics=[line, {**line, **similar, "step": 10}])
    shown = curves_section(replace(facts, pretraining=pretraining)).blocks
    words = [block.description for block in shown if isinstance(block, Picture)]
    assert words[0].endswith("Chance is 3.250.")
    assert words[1].startswith("Similarity at the end: 0.99 of two views of one image, 0.98 of views of different")
    assert "collapsed" in str(next(block for block in shown if isinstance(block, Notes)))


def test_cost_is_device_hours_and_an_estimate_with_its_assumption(run: Path) -> None:
    facts = read_facts(run, shows_images=True)
    assert facts.pretraining is not None
    gpu = Hardware(0, 8, 2, "NVIDIA H100 80GB HBM3", "a processor", 32, 2**38, "Linux")
    lines = [{"step": 10, "speed/images_per_s": 16 * 10 / 3600}]
    for hardware, expected in (
        (gpu, [("GPU hours", "8.00"), ("energy (an estimate)", "about 5.6 kWh, assuming 700 W for each GPU")]),
        (replace(gpu, device="NVIDIA Unheard"), [("energy (an estimate)", "not available")]),
        (replace(gpu, device=""), [("CPU-core hours", "64.00"), ("energy (an estimate)", "about 0.77 kWh")]),
    ):
        pretraining = replace(facts.pretraining, metrics=lines, hardware=[hardware])
        [block] = cost_section(replace(facts, pretraining=pretraining)).blocks
        assert isinstance(block, Facts)
        for name, text in expected:
            assert dict(block.items)[name].startswith(text)


def test_checklists_have_every_item_and_say_what_is_not_available(full_page: Page) -> None:
    for words in (
        "of 52 items have facts",
        "of 44 items have facts",
        "not available",
        "624 test images of 427 patients",
    ):
        assert words in full_page.text


def test_a_page_for_others_shows_no_image(full_run: Path, tmp_path: Path) -> None:
    page = Page(report(full_run, out=tmp_path / "shared", images=False).read_text())
    assert not [uri for uri in page.attributes("img", "src") if not uri.startswith("data:image/svg")]
    assert "--images=false" in page.text


@pytest.fixture(scope="module")
def pictured_run(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> Path:
    run = make_run(tmp_path_factory.mktemp("pictured") / "run", shards, steps=())
    write_results(run, made_results([made_dataset("rigorous")]))
    write_made_pictures(run)
    return run


def test_radiographs_have_maps_that_can_be_blended_and_checks(pictured_run: Path) -> None:
    page = page_of(pictured_run)
    images = [uri for uri in page.attributes("img", "src") if uri.startswith("data:image/jpeg;base64,")]
    # A radiograph with its map, and a fault with its map and two images beside it; nothing from outside of the folder.
    assert len(images) == 6
    assert all(base64.b64decode(uri.partition(",")[2]) == made_jpeg() for uri in images[:4])
    assert len(page.attributes("input", "type")) == 2
    for words in ("correct: PNEUMONIA", KEY, PATIENT, "0.930 (positive above 0.410)", "AP, F, 4.5 years", "0.12"):
        assert words in page.text
    for words in ("the whole backbone", "0.05 to 0.20", "Outside: a border.", "28.0-34.0", "44.0"):
        assert words in page.text
    assert "The picture of 2 of 3 radiographs is missing or damaged" in page.text


def test_faults_stand_with_what_is_beside_them_and_how_many_more_there_are(pictured_run: Path) -> None:
    page = page_of(pictured_run)
    for words in (
        "epoch 24 called 12 of 624 test images wrongly: 0 NORMAL were called PNEUMONIA, and 12 PNEUMONIA were called",
        "1 of these 12",
        "called NORMAL, is PNEUMONIA",
        "0.070 (positive above 0.410)",
        "300 px",
        "NORMAL, similarity 0.87, development",
        "The same picture elsewhere, and 3 more",
        "PNEUMONIA, similarity 0.99, test, score 0.61",
        "4.0-11.0",
    ):
        assert words in page.text
    assert "Other images of the patient" not in page.text


def test_a_probe_without_a_fault_says_so(pictured_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pictured_run, run)
    question = QuestionFaults("cell", "rigorous", "epoch 24", "PNEUMONIA", "NORMAL", 1, 0, 0, [])
    write_pictures_record(run / "pictures", FAULTS, Faults(FAULTS_VERSION, [], [question]))
    assert "epoch 24 called 0 of 1 test image wrongly" in page_of(run).text


def test_maps_of_features_stand_with_their_warning_and_what_is_missing(pictured_run: Path) -> None:
    page = page_of(pictured_run)
    for words in (
        WARNING,
        "cell, untrained backbone: the features of all images are the same.",
        "40 images of 624 test images; 2 no answer left out. Squares: PNEUMONIA, dots: NORMAL. Perplexity 13. This is",
        "0.912",
    ):
        assert words in page.text
    assert [words for words in page.attributes("img", "alt") if "epoch 24, kNN AUC 87.5 %" in words]
    assert f"{KEY}-1" not in page.text


def test_a_page_for_others_names_no_image_and_no_patient(pictured_run: Path, tmp_path: Path) -> None:
    text = report(pictured_run, out=tmp_path, images=False).read_text()
    assert "data:image/jpeg" not in text
    assert KEY not in text
    assert PATIENT not in text
    assert "28.0-34.0" in text


def test_damaged_pictures_are_missing_and_the_page_is_not(pictured_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pictured_run, run)
    (run / "pictures" / ATTENTION).write_text("{")
    page = page_of(run)
    assert "attention.json cannot be read" in page.text
    assert "ranks the two correctly" in page.text


@pytest.mark.slow
def test_page_of_as_many_faults_as_a_probe_shows_stays_below_15_mb(pictured_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pictured_run, run)
    noise = np.random.default_rng(0).integers(0, 256, (320, 320), np.uint8)
    Image.fromarray(noise).save(run / "pictures" / "a.jpg", quality=90)  # larger than any radiograph
    record = read_faults(run)
    assert record is not None
    [question] = record.questions
    [fault] = question.most_confident
    many = replace(fault, nearest=5 * fault.nearest, same_patient=6 * fault.nearest, same_picture=6 * fault.nearest)
    full = replace(record, questions=[replace(question, most_confident=36 * [many])])
    write_pictures_record(run / "pictures", FAULTS, full)
    assert 2e6 < report(run).stat().st_size < 15e6
