"""`report.html`: one self-contained page about a run or several, to mail, print and keep."""

import base64
import hashlib
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import jinja2

from evaluation.report.html.attention_section import attention_section
from evaluation.report.html.audit_section import audit_section
from evaluation.report.html.blocks import Missing, Section
from evaluation.report.html.checklists import checklists_section
from evaluation.report.html.cost import cost_section
from evaluation.report.html.embeddings_section import embeddings_section
from evaluation.report.html.faults_section import faults_section
from evaluation.report.html.run_facts import RunFacts, read_facts
from evaluation.report.html.run_sections import configuration_section, curves_section, data_section, files_section
from evaluation.report.html.score_sections import (
    calibration_section,
    scores_section,
    selection_section,
    subgroups_section,
)
from evaluation.report.html.summary import summary_section
from evaluation.report.html.views_section import views_section
from infra.storage.files import write_atomic

REPORT_NAME: Final = "report.html"
_TEMPLATES: Final = Path(__file__).parent / "templates"


def report(folder: Path, *, out: Path | None = None, images: bool = True) -> Path:
    """Write `report.html` about a run, or about backbones that were probed without one.

    The page names the parts that a run does not have yet.

    Args:
        folder: the run, or the folder of the probe
        out: where the page is written; the same folder by default
        images: whether it shows images of patients, and their keys

    Returns:
        The path of the page.

    Raises:
        UserError: if it is the folder of neither, or a file is damaged
    """
    path = (out or folder) / REPORT_NAME
    write_atomic(path, render_run(folder, images=images))
    return path


def render_run(folder: Path, *, images: bool, state: str = "") -> str:
    """Return the page about one run.

    Args:
        folder: the run
        images: whether the page shows images of patients
        state: state of the run's files, if the page is served and asks for changes; empty for a page in a file

    Raises:
        UserError: if it is no run, or a file is damaged
    """
    facts = read_facts(folder, shows_images=images)
    return render(facts.name, sections_of(facts), state)


def render_message(name: str, message: str, state: str) -> str:
    """Return a page that only says why there is none yet; it follows the run as the page does."""
    return render(name, [Section("summary", "No page yet", [Missing(f"{message}.")])], state)


def sections_of(facts: RunFacts) -> list[Section]:
    """Return the sections about one run, in the order in which a reader needs them."""
    results, folder = facts.results, shlex.quote(str(facts.folder))
    sections = [summary_section(facts), views_section(facts)]
    if results:
        sections += [attention_section(facts), faults_section(facts)]
    sections += [curves_section(facts), scores_section(results, folder)]
    if results:
        if results.run:
            sections.append(selection_section(facts.selection, folder))
        sections.append(embeddings_section(facts))
        sections += [calibration_section(results), subgroups_section(facts, results), audit_section(results)]
    sections += [data_section(facts), configuration_section(facts), cost_section(facts)]
    return [*sections, checklists_section(facts), files_section(facts)]


def render(name: str, sections: Sequence[Section], state: str = "") -> str:
    """Return the HTML of a page.

    Args:
        name: its title
        sections: what it shows; a section without blocks is left out
        state: as for `render_run`
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__.lower()
    style, script = ((_TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
    return environment.get_template("page.html.j2").render(
        name=name,
        version=version("sternum"),
        sections=[section for section in sections if section.blocks],
        state=state,
        style=style,
        script=script,
        policy=_policy(style, script, is_served=bool(state)),
    )


def _policy(style: str, script: str, *, is_served: bool) -> str:
    """Return the rule by which a browser refuses every request, and every style and script but the page's own."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script))
    styles, scripts = (f"'sha256-{text}'" for text in hashes)
    asks = "'self'" if is_served else "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src {styles}; script-src {scripts}; connect-src {asks}; "
        "base-uri 'none'; form-action 'none'"
    )
