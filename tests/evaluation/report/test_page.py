import base64
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from evaluation.data.labeled_sets import ProbeData
from evaluation.probing.config import ProbeConfig
from evaluation.probing.probe import probe
from evaluation.report.page import report
from evaluation.results.results import Results, write_results
from evaluation.results.scores import Estimate
from infra.errors import UserError
from tests.support.fault_server import serving
from tests.support.probe_results import made_dataset, made_results, made_row, made_scores, made_selection

MakeRun = Callable[..., Path]
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag that opens closes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str, name: str) -> list[str]:
        return [values[name] or "" for result, values in self.tags if result == tag and name in values]


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
    sections = ["scores", "selection", "training", "data", "configuration", "files"]
    assert full_page.attributes("section", "aria-labelledby") == full_page.attributes("h2", "id") == sections
    described = [words.partition(" ")[0] for words in full_page.attributes("img", "alt")]
    assert described == ["AUC", "Accuracy", "Reliability", "Decision", "AUC", "Line:"]
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
    assert [words.partition(" ")[0] for words in page.attributes("img", "alt")] == ["AUC", "Line:"]
    for words in ("Reliability", "Brier", "subgroup", "Checkpoint chosen without labels"):
        assert words not in page.text


def test_report_of_controls_alone_says_that_no_checkpoint_was_probed(run: Path) -> None:
    dataset = made_dataset("rigorous")
    only = replace(made_results([dataset]), rows=[made_row(dataset, "untrained backbone", "untrained", 0.9)])
    assert "cell, rigorous: no checkpoint was probed." in page_of(run, only).text


def test_report_loads_nothing_from_the_network_and_uses_each_id_once(full_run: Path, full_page: Page) -> None:
    assert ("html", {"lang": "en"}) in full_page.tags
    links = [values.get(name) for _, values in full_page.tags for name in ("src", "href") if values.get(name)]
    assert links
    assert not [link for link in links if link and not link.startswith("data:") and re.match(r"[a-z]+:|//|/", link)]
    assert not [tag for tag, _ in full_page.tags if tag in ("script", "link", "iframe")]
    assert not re.search(r"url\(|@import", (full_run / "report.html").read_text())
    ids = [values["id"] for _, values in full_page.tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_pictures_are_drawn_with_the_figures_in_words(full_page: Page) -> None:
    for uri in full_page.attributes("img", "src"):
        drawn = ElementTree.fromstring(base64.b64decode(uri.removeprefix("data:image/svg+xml;base64,")))
        assert drawn.tag.endswith("svg")
    auc, accuracy, *_ = full_page.attributes("img", "alt")
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


def test_report_escapes_what_it_is_given(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "<b>&run", shards)
    dataset = made_dataset("rigorous", label="<i>cell</i>")
    assert "<b>&run" in page_of(run, made_results([dataset])).text
    assert "&lt;b&gt;&amp;run" in report(run).read_text()
    assert "<i>" not in report(run).read_text()


def test_report_opens_no_url_of_the_run(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "run", shards)
    config = run / "config.yaml"
    with serving(shards.parent) as server:
        config.write_text(config.read_text().replace(str(shards), f"{server.url}/shards"))
        page = page_of(run)
        assert server.requests == []
        assert f"{server.url}/shards is not on this machine" in page.text


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml does not exist; name a folder"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["results.json", "selection.json"])
def test_invalid_files_are_refused(run: Path, name: str) -> None:
    (run / name).write_text("{}")
    with pytest.raises(UserError, match=rf"{name} cannot be read.*probe the run again"):
        report(run)
