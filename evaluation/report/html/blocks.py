"""What the page is made of: sections of blocks, which `templates/blocks.html.j2` turns into HTML by their types."""

from dataclasses import dataclass, field
from typing import Literal

from evaluation.report.tables import Table


@dataclass(frozen=True)
class Heading:
    """The heading of a part of a section."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph.

    Attributes:
        text: what it says
        style: "lead" for the most important one, "quiet" for one that explains
    """

    text: str
    style: Literal["plain", "lead", "quiet"] = "plain"


@dataclass(frozen=True)
class Missing:
    """Says that a part of the page is missing, why, and which command makes it, if one does."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Notes:
    """Sentences that a reader needs before believing what is beside them."""

    items: list[str]


@dataclass(frozen=True)
class Facts:
    """Names with their values."""

    items: list[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Text of a program or a configuration."""

    caption: str
    text: str


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        uri: data URI of the image
        description: its content in words
        caption: the text below it
        is_chart: whether it is drawn on a transparent ground, so that the dark page may invert it; a radiograph is not
    """

    uri: str
    description: str
    caption: str
    is_chart: bool = True


@dataclass(frozen=True)
class Thumbnail:
    """A small radiograph beside a case: data URI (empty if it is left out) and its caption."""

    uri: str
    caption: str


@dataclass(frozen=True)
class Case:
    """One radiograph with what is known of it.

    Attributes:
        title: what the case shows, such as "correct: PNEUMONIA"
        uri: data URI of the radiograph; empty if it is left out
        map_uri: data URI of its attention map in gray, of the same size; empty without one
        facts: names with their values
        groups: titles with small radiographs beside it, such as the nearest training images
    """

    title: str
    uri: str
    map_uri: str
    facts: list[tuple[str, str]]
    groups: list[tuple[str, list[Thumbnail]]] = field(default_factory=list)

    @property
    def description(self) -> str:
        """The case in words."""
        return f"Radiograph, {self.title}"


@dataclass(frozen=True)
class Gallery:
    """Radiographs side by side."""

    caption: str
    cases: list[Case]


@dataclass(frozen=True)
class Fold:
    """Blocks that are closed until a reader opens them."""

    title: str
    blocks: "list[Block]"


Block = Heading | Paragraph | Missing | Notes | Facts | Code | Picture | Gallery | Table | Fold


@dataclass(frozen=True)
class Section:
    """One section of the page: its anchor, its title and what it shows."""

    anchor: str
    title: str
    blocks: list[Block]
