"""The section that shows what the network saw: samples beside their views; and how a page holds images."""

import base64
from typing import Final

from evaluation.report.html.blocks import Missing, Picture, Section
from evaluation.report.html.run_facts import RunFacts
from infra.monitoring.event_images import read_first_image

LEFT_OUT: Final = Missing("Left out, because this page shows no images of patients (--images=false).")
MOST_BYTES: Final = 2 << 20  # of one picture; those of a probe have some 20 kB
_KINDS: Final = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg"}


def views_section(facts: RunFacts) -> Section:
    """Return the first samples of the pretraining beside their two views."""
    title = "What the network saw"
    if not facts.shows_images:
        return Section("views", title, [LEFT_OUT])
    sheet = read_first_image(facts.folder, "views")
    if sheet is None or not (uri := data_uri_of(sheet)):
        return Section("views", title, [Missing("The run has recorded no samples and views.")])
    words = "Samples of the first batch with the crops that were drawn, and the two views that the network compared."
    return Section("views", title, [Picture(uri, words, words, is_chart=False)])


def data_uri_of(content: bytes) -> str:
    """Return a PNG or JPEG as a data URI; empty for other content, and for more than a picture of a page has."""
    kind = next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)
    if kind is None or len(content) > MOST_BYTES:
        return ""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
