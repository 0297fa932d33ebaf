"""The section on attention: where radiographs hold the evidence for decisions, and whether a map may be believed."""

from collections.abc import Iterator
from pathlib import Path

from evaluation.report.html.blocks import Block, Case, Gallery, Heading, Missing, Paragraph, Section
from evaluation.report.html.radiographs import image_facts, missing_pictures, no_pictures, picture_uri, score_in_words
from evaluation.report.html.run_facts import RunFacts
from evaluation.report.html.views_section import LEFT_OUT
from evaluation.report.score_table import with_interval
from evaluation.report.tables import Table, percent
from evaluation.results.picture_records import Attention, AttentionMap, read_attention
from evaluation.results.scores import Estimate
from infra.errors import UserError


def attention_section(facts: RunFacts) -> Section:
    """Return maps of the evidence for some correct decisions, and the checks that a map needs to be believed."""
    title = "Where the network looks"
    try:
        record = read_attention(facts.folder)
    except UserError as error:
        return Section("attention", title, [Missing(f"{error}.")])
    if record is None:
        return Section("attention", title, [no_pictures(facts.folder)])
    if record.left_out:
        return Section("attention", title, [Missing(f"{record.left_out}.")])
    return Section("attention", title, list(_attention_blocks(record, facts)))


def _attention_blocks(record: Attention, facts: RunFacts) -> Iterator[Block]:
    yield Heading(f"{record.dataset}, {record.preset}: {record.positive} against {record.negative}")
    yield Paragraph(f"Features: {record.features}. {record.method}")
    if facts.shows_images:
        cases = [_attention_case(item, record, facts.folder) for item in record.maps]
        yield Gallery(f"Correct decisions; yellow to white where the evidence is strongest. {record.choice}", cases)
        yield from missing_pictures(cases)
    else:
        yield LEFT_OUT
    yield Table(
        "Does a map depend on what was learned? Likeness of maps before and after weights became random; 1 is equal. "
        "The first line is the scale: how alike the maps of two images are. Maps that stay more alike than that show "
        "the image, not the network",
        ("random weights", "images", "rank correlation", "95 %", "SSIM", "95 %"),
        [
            (item.weights, str(item.images), *_number(item.rank_correlation), *_number(item.ssim))
            for item in record.randomized
        ],
        text_columns=1,
    )
    yield Table(
        f"Does it look at the lungs? Share of the attention outside of their usual place, in percent. "
        f"{record.outside_region}",
        ("features", "images", "empty maps", "outside", "95 %", "equal attention everywhere"),
        [
            (
                *(item.features, str(item.images), str(item.empty)),
                *with_interval(item.share),
                percent(item.uniform),
            )
            for item in record.outside
        ],
        text_columns=1,
    )


def _attention_case(item: AttentionMap, record: Attention, folder: Path) -> Case:
    decided = record.positive if item.is_positive else record.negative
    outside = [] if item.outside is None else [("outside lungs", f"{percent(item.outside)} %")]
    return Case(
        f"correct: {decided}",
        picture_uri(folder, item.image.file),
        picture_uri(folder, item.file),
        [("score", score_in_words(item.score, item.threshold)), *image_facts(item.image), *outside],
    )


def _number(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return ("", "")
    bounds = "" if estimate.low is None or estimate.high is None else f"{estimate.low:.2f} to {estimate.high:.2f}"
    return (f"{estimate.value:.2f}", bounds)
