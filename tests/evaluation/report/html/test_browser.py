"""The page in a real browser: Debian's chromium, driven by playwright and judged by axe-core."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from evaluation.report.html.page import report
from evaluation.report.html.serve import serving
from evaluation.results.results import write_results
from tests.support.made_pictures import write_made_pictures
from tests.support.probe_results import made_results, made_selection

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]

MakeRun = Callable[..., Path]
TabOf = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory, shards: Path, make_run: MakeRun) -> Path:
    run = make_run(tmp_path_factory.mktemp("browser") / "run", shards)
    write_results(run, made_results())
    (run / "selection.json").write_bytes(msgspec.json.encode(made_selection()))
    write_made_pictures(run)
    return report(run)


@pytest.fixture
def tab_of(browser: Any) -> Iterator[TabOf]:
    """Opens a page, and fails if it wrote to the console or asked for anything but itself."""
    contexts, complaints, requests = [], [], []

    def open_tab(address: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(address)
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert complaints == []
    outside = [url for url in requests if not url.startswith(("file:", "data:", "http://127.0.0.1:"))]
    assert outside == []


def cells(tab: Any, table: int, column: int) -> list[str]:
    rows = tab.locator("main table").nth(table).locator("tbody tr")
    return [rows.nth(number).locator("th, td").nth(column).inner_text() for number in range(rows.count())]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_both_schemes_and_widths(page_file: Path, tab_of: TabOf, width: int, scheme: str) -> None:
    tab = tab_of(page_file.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    found = axe.Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("main section h2").count() == tab.locator("nav a").count() > 10
    for image in tab.locator("main img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")


def test_tables_sort_by_number_and_back(page_file: Path, tab_of: TabOf) -> None:
    tab = tab_of(page_file.as_uri())
    table = next(
        number
        for number, each in enumerate(tab.locator("main table").all())
        if "Scores on the test part" in each.inner_text()
    )
    headers = tab.locator("main table").nth(table).locator("thead th")
    column = headers.all_inner_texts().index("AUC")
    before = cells(tab, table, column)
    headers.nth(column).get_by_role("button").click()
    assert cells(tab, table, column) == sorted(before, key=float) != before
    assert headers.nth(column).get_attribute("aria-sort") == "ascending"
    headers.nth(column).get_by_role("button").press("Enter")
    assert cells(tab, table, column) == sorted(before, key=float, reverse=True)
    assert headers.nth(column).get_attribute("aria-sort") == "descending"


def test_figures_enlarge_and_close_by_keyboard(page_file: Path, tab_of: TabOf) -> None:
    tab = tab_of(page_file.as_uri())
    figure = tab.get_by_role("button", name="Enlarge: Line").first
    figure.focus()
    figure.press("Enter")
    assert tab.locator("dialog").evaluate("dialog => dialog.open")
    shown = tab.locator("#zoom-area img")
    width = shown.bounding_box()["width"]
    tab.keyboard.press("+")
    assert shown.bounding_box()["width"] == pytest.approx(1.5 * width, rel=0.02)
    tab.keyboard.press("Escape")
    assert not tab.locator("dialog").evaluate("dialog => dialog.open")
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Enlarge: Line")


@pytest.mark.parametrize("width", [1280, 390])
def test_a_map_covers_its_photograph(page_file: Path, tab_of: TabOf, width: int) -> None:
    """Neither is cut nor shifted against the other, although the picture is smaller than its card."""
    tab = tab_of(page_file.as_uri(), viewport={"width": width, "height": 900})
    photo, shown = (tab.locator(f".blend:has(.map) {name}").first.bounding_box() for name in (".photo", ".map"))
    assert photo is not None
    assert photo["width"] > 150
    assert photo == pytest.approx(shown, abs=1)


def test_captions_and_charts_can_be_read_on_a_phone(page_file: Path, tab_of: TabOf) -> None:
    tab = tab_of(page_file.as_uri(), viewport={"width": 390, "height": 900})
    for caption in tab.locator("caption span").all():
        if box := caption.bounding_box():  # none while its table is folded
            assert box["x"] + box["width"] <= 390
    chart = tab.locator("img.chart").first
    drawn = chart.evaluate("image => image.naturalWidth")
    assert chart.bounding_box()["width"] == pytest.approx(drawn, abs=1)
    assert drawn > 390


def test_a_map_is_blended_by_its_slider(page_file: Path, tab_of: TabOf) -> None:
    tab = tab_of(page_file.as_uri())
    shown = "getComputedStyle(document.querySelector('.map')).opacity"
    assert tab.evaluate(shown) == "0.6"
    slider = tab.get_by_label("Attention").first
    slider.focus()
    slider.press("Home")
    assert tab.evaluate(shown) == "0"
    tab.get_by_role("button", name="Enlarge: Radiograph, correct: PNEUMONIA").first.click()
    assert tab.locator("#zoom-area img").count() == 2  # the map goes along


def test_switch_of_colors_and_the_first_tab_stop(page_file: Path, tab_of: TabOf) -> None:
    tab = tab_of(page_file.as_uri(), color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.get_by_role("button", name="Dark").click()
    assert tab.evaluate(ground) != light
    tab.get_by_role("button", name="Light").click()
    assert tab.evaluate(ground) == light


def test_print_opens_what_is_closed(page_file: Path, tab_of: TabOf) -> None:
    tab = tab_of(page_file.as_uri(), color_scheme="dark")
    assert tab.locator("details:not([open])").count() > 0
    printed = tab.pdf()
    assert printed.startswith(b"%PDF")
    assert tab.locator("details:not([open])").count() == 0


def test_a_served_page_follows_the_run(
    browser: Any, shards: Path, make_run: MakeRun, tmp_path: Path, tab_of: TabOf
) -> None:
    run = make_run(tmp_path / "run", shards, steps=())
    with serving(run, "127.0.0.1", 0, images=True) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        tab = tab_of(server.url)
        try:
            assert "has not been probed" in tab.locator("main").inner_text()
            write_results(run, made_results())
            tab.get_by_text("Brier score").first.wait_for(state="attached", timeout=120_000)
        finally:
            server.shutdown()
            thread.join()


def test_script_in_a_run_does_not_run(tmp_path: Path, shards: Path, make_run: MakeRun, tab_of: TabOf) -> None:
    run = make_run(tmp_path / "<img src=x onerror=document.title=1>", shards)
    write_results(run, made_results())
    tab = tab_of(report(run).as_uri())
    assert "onerror" in tab.title()
