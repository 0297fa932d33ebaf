import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.probe import ProbeConfig, probe
from evaluation.report import report
from infra.errors import UserError

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


def page_of(run: Path) -> Page:
    return Page(report(run).read_text())


def probed(run: Path, shards: Path) -> Path:
    probe(ProbeConfig(run, [shards], executor="torchvision", search="serial", c_grid=[1.0], folds=2))
    return run


def test_report_shows_trained_beside_untrained_beside_pixels_beside_paper(run: Path, shards: Path) -> None:
    page = page_of(probed(run, shards))
    for words in ("epoch 2", "untrained backbone", "32 x 32 raw pixels", "paper, 100 % of CheXpert", "97.7"):
        assert words in page.text
    assert "84" in page.text
    assert "global_batch: 16" in page.text
    images = [values for tag, values in page.tags if tag == "img"]
    assert len(images) == 2
    assert all(len(values["alt"] or "") > 20 for values in images)


def test_report_asks_nothing_of_the_network_and_names_each_id_once(run: Path, shards: Path) -> None:
    page = page_of(probed(run, shards))
    assert ("html", {"lang": "en"}) in page.tags
    links = [values.get(name) for _, values in page.tags for name in ("src", "href") if values.get(name)]
    assert links
    assert not [link for link in links if link and not link.startswith("data:") and re.match(r"[a-z]+:|//|/", link)]
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    ids = [values["id"] for _, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_report_of_simulated_data_leaves_the_paper_out(run: Path, simulated_cell: Path) -> None:
    page = page_of(probed(run, simulated_cell))
    assert "cell (simulated)" in page.text
    assert "prove nothing about medicine" in page.text
    assert "97.7" not in page.text


def test_report_says_what_is_missing_when_the_run_has_only_begun(
    tmp_path: Path, shards: Path, make_run: MakeRun
) -> None:
    page = page_of(make_run(tmp_path / "new", shards, steps=()))
    for words in ("not been probed yet", "No step has been logged yet", "No checkpoint has been written yet"):
        assert words in page.text


def test_report_escapes_what_it_is_given(tmp_path: Path, shards: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path / "<b>&run", shards)
    assert "<b>&run" in page_of(run).text
    assert "&lt;b&gt;&amp;run" in report(run).read_text()


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml does not exist; name a folder"):
        report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_results_that_are_not_ours_are_refused(run: Path) -> None:
    (run / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"results\.json cannot be read.*probe the run again"):
        report(run)
