"""What the sections on radiographs share: a probe's pictures as images of the page, and what is known of them."""

import io
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from evaluation.report.html.blocks import Case, Missing
from evaluation.report.html.views_section import MOST_BYTES, data_uri_of
from evaluation.results.picture_records import FOLDER, LONGEST_SIDE_PX, PicturedImage
from infra.errors import UserError
from infra.storage.files import regular_size

_THUMBNAIL_PX: Final = 96


def no_pictures(folder: Path) -> Missing:
    """Say that a probe without pictures leaves nothing to show."""
    return Missing(
        "The probe has left no pictures.",
        f"sternum probe {shlex.quote(str(folder))} --data.shards=[FOLDER] --pictures=true",
    )


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
    """Return a picture of a probe as a data URI; empty if there is none that can be shown."""
    return data_uri_of(_content(folder, name))


def thumbnail_uri(folder: Path, name: str) -> str:
    """Return the same at most 96 px wide and high: a page has hundreds of the images beside faults."""
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(_content(folder, name)), formats=("JPEG",)) as image:
            if max(image.size) > LONGEST_SIDE_PX:  # no probe wrote it, and it may be large on purpose
                return ""
            image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
            image.save(small, "JPEG")
    except OSError:
        return ""
    return data_uri_of(small.getvalue())


def _content(folder: Path, name: str) -> bytes:
    """Return a file of the folder of pictures; empty if it cannot be read.

    The name comes from a record that anybody may have written, so it must be that of a file in this folder itself.
    """
    path = folder / FOLDER / name
    if not name or name != path.name or path.is_symlink():
        return b""
    try:
        return path.read_bytes() if regular_size(path) <= MOST_BYTES else b""
    except (OSError, UserError):
        return b""
