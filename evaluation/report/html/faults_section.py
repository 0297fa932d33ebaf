"""The section on faults: test images that the probe called wrongly with what is beside them, and the error rates."""

from collections.abc import Iterator
from pathlib import Path

from evaluation.report.html.blocks import Block, Case, Gallery, Heading, Missing, Paragraph, Section, Thumbnail
from evaluation.report.html.radiographs import (
    image_facts,
    missing_pictures,
    no_pictures,
    picture_uri,
    score_in_words,
    thumbnail_uri,
)
from evaluation.report.html.run_facts import RunFacts
from evaluation.report.html.views_section import LEFT_OUT
from evaluation.report.score_table import with_interval
from evaluation.report.tables import Table
from evaluation.results.fault_records import (
    ErrorRates,
    Fault,
    Faults,
    GroupErrors,
    QuestionFaults,
    RelatedImage,
    read_faults,
)
from infra.errors import UserError
from infra.words import counted


def faults_section(facts: RunFacts) -> Section:
    """Return the most confident faults of each question of the first task."""
    title = "What it gets wrong"
    record = _record(facts)
    if isinstance(record, Missing):
        return Section("faults", title, [record])
    blocks = [block for question in record.questions for block in _question_blocks(question, facts)]
    return Section("faults", title, blocks or [Missing("No question was tested.")])


def error_rate_tables(facts: RunFacts) -> list[Table | Missing]:
    """Return the error rates of each question and preset in groups of test images."""
    record = _record(facts)
    if isinstance(record, Missing):
        return [Missing(f"Error rates in groups of images: {record.text}", record.command)]
    return [_rates_table(rates) for rates in record.rates]


def _record(facts: RunFacts) -> Faults | Missing:
    try:
        return read_faults(facts.folder) or no_pictures(facts.folder)
    except UserError as error:
        return Missing(f"{error}.")


def _question_blocks(question: QuestionFaults, facts: RunFacts) -> Iterator[Block]:
    count = question.false_positives + question.false_negatives
    yield Heading(f"{question.dataset}, {question.preset}: {question.positive} against {question.negative}")
    yield Paragraph(
        f"{question.features} called {count} of {counted(question.tested, 'test image')} wrongly: "
        f"{question.false_positives} {question.negative} were called {question.positive}, and "
        f"{question.false_negatives} {question.positive} were called {question.negative}."
    )
    if not count:
        return
    if not facts.shows_images:
        yield LEFT_OUT
        return
    cases = [_case(fault, question, facts.folder) for fault in question.most_confident]
    order = f"{len(cases)} of these {count}; of each kind, those with scores farthest from the threshold come first"
    has_map = any(case.map_uri for case in cases)
    evidence = ". Yellow to white where the evidence for the wrong decision is strongest" if has_map else ""
    yield Gallery(f"{order}{evidence}", cases)
    yield from missing_pictures(cases)


def _case(fault: Fault, question: QuestionFaults, folder: Path) -> Case:
    called, is_one = question.positive, question.negative
    if fault.score <= fault.threshold:
        called, is_one = is_one, called
    side = [("shorter side", f"{fault.shorter_side_px} px")] if fault.shorter_side_px else []
    groups = (
        ("Nearest images that it learned from, by features", fault.nearest, 0),
        ("Other images of the patient", fault.same_patient, fault.more_of_patient),
        ("The same picture elsewhere", fault.same_picture, fault.more_of_picture),
    )
    return Case(
        f"called {called}, is {is_one}",
        picture_uri(folder, fault.image.file),
        picture_uri(folder, fault.map),
        [("score", score_in_words(fault.score, fault.threshold)), *image_facts(fault.image), *side],
        [
            (f"{title}{f', and {more} more' * bool(more)}", [_thumbnail(each, question, folder) for each in images])
            for title, images, more in groups
            if images
        ],
    )


def _thumbnail(related: RelatedImage, question: QuestionFaults, folder: Path) -> Thumbnail:
    names = {1: question.positive, 0: question.negative, None: "no answer"}
    parts = [names.get(related.image.label, "no answer"), f"similarity {related.cosine:.2f}", related.part]
    if related.score is not None:
        parts.append(f"score {related.score:.2f}")
    return Thumbnail(thumbnail_uri(folder, related.image.file), ", ".join(parts))


def _rates_table(rates: ErrorRates) -> Table:
    return Table(
        f"{rates.dataset}, {rates.preset}, {rates.features}: errors in groups of test images, in percent of the "
        "negative (false positives) and of the positive images (false negatives)",
        ("attribute", "group", "images", "patients", "positive", "FP", "FP rate", "95 %", "FN", "FN rate", "95 %"),
        [_cells(group) for group in rates.groups],
    )


def _cells(group: GroupErrors) -> tuple[str, ...]:
    return (
        *(group.attribute or "all", group.group),
        *map(str, (group.images, group.patients, group.positives)),
        *(str(group.false_positives), *with_interval(group.false_positive_rate)),
        *(str(group.false_negatives), *with_interval(group.false_negative_rate)),
    )
