"""What the sections on radiographs share: a probe's pictures as images of the page, and what is known of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from evaluation.report.html.blocks import Case, Missing
from evaluation.report.html.views_section import data_uri_of
from evaluation.results.picture_records import FOLDER, PicturedImage
from infra.errors import UserError
from infra.files import read_regular


def no_pictures(folder: Path) -> Missing:
    """Say that a probe without pictures leaves nothing to show."""
    return Missing("The probe has left no pictures.", f"sternum probe {folder} --data.shards=[FOLDER] --pictures=true")


def missing_pictures(cases: Sequence[Case]) -> Iterator[Missing]:
    """Say how many radiographs of a gallery cannot be shown."""
    count = sum(not case.uri for case in cases)
    if count:
        yield Missing(f"The picture of {count} of {len(cases)} radiographs is missing or damaged.")


def image_facts(image: PicturedImage) -> list[tuple[str, str]]:
    """Return what is known of an image and its patient."""
    person = [image.view or "", image.sex or "", "" if image.age is None else f"{image.age:g} years"]
    known = ", ".join(filter(None, person))
    return [
        ("image", image.key),
        ("patient", image.patient),
        *([("known", known)] if known else []),
        *([("split", image.split)] if image.split else []),
    ]


def score_in_words(score: float, threshold: float) -> str:
    """Return the probability of the positive class beside the threshold of the decision."""
    return f"{score:.3f} (positive above {threshold:.3f})"


def picture_uri(folder: Path, name: str) -> str:
    """Return a picture of a probe as a data URI; empty if there is no such file in the folder of pictures, or none.

    The name comes from a record that anybody may have written, so it must be one of a file of that folder.
    """
    path = folder / FOLDER / name
    if not name or name != path.name or path.is_symlink():
        return ""
    try:
        return data_uri_of(read_regular(path))
    except (OSError, UserError):
        return ""
