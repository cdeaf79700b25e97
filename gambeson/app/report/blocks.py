"""What a page is made of: values without markup, so that the template alone writes HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Words:
    """A paragraph.

    Attributes:
        text: Plain text; the page escapes it.
        tone: `plain`, `note` (small), or `warning`.
    """

    kind: ClassVar[str] = "words"
    text: str
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True)
class Command:
    """A command line to copy."""

    kind: ClassVar[str] = "command"
    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        head: Titles of the columns.
        rows: Cells as text.
        left: Columns that hold text, at the left; the others hold numbers.
        folded: Whether it is closed until the reader opens it.
    """

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Pairs:
    """Names and values, one under the other."""

    kind: ClassVar[str] = "pairs"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Chart:
    """A drawing as SVG.

    Attributes:
        title: What it shows.
        text: The same in words, for those who do not see it.
        svg: The drawing, with `KEY` where the page puts what makes its names unique.
        note: Words below it.
    """

    kind: ClassVar[str] = "chart"
    title: str
    text: str
    svg: str
    note: str = ""

    def drawn(self, number: int) -> str:
        """The SVG as the `number`th drawing of a page."""
        return self.svg.replace("KEY", f"c{number}")


@dataclass(frozen=True)
class Picture:
    """Pixels.

    Attributes:
        title: What it shows.
        text: The same in words.
        uri: The pixels as a `data:` address.
        pixelated: Whether it is enlarged without smoothing.
    """

    kind: ClassVar[str] = "picture"
    title: str
    text: str
    uri: str
    pixelated: bool = False


def png_uri(content: bytes) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


@dataclass(frozen=True)
class Example:
    """One image and what an attack made of it.

    Attributes:
        pictures: From left to right.
        words: What the model says.
        verdict: `fooled`, `wrong before the attack`, or nothing where it stands.
    """

    pictures: Sequence[Picture]
    words: str
    verdict: str


@dataclass(frozen=True)
class Examples:
    """Some images under attack."""

    kind: ClassVar[str] = "examples"
    rows: Sequence[Example]


Block = Words | Command | Table | Pairs | Chart | Picture | Examples


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        key: Its name in the address and in the JSON.
        title: Its heading.
        blocks: What it shows.
        data: The same for machines.
        stamp: Said beside the heading where the run was selected on the test set.
    """

    key: str
    title: str
    blocks: Sequence[Block]
    data: Any
    stamp: str = ""


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page.

    Attributes:
        label: What it is.
        value: The number, or a word.
        note: Its interval, or what it is of.
        tone: `plain`, `good`, `warning` or `bad`; the words say it too.
    """

    label: str
    value: str
    note: str
    tone: Literal["plain", "good", "warning", "bad"] = "plain"


@dataclass(frozen=True)
class Part:
    """What the page says of one run.

    Attributes:
        name: The run's name.
        about: Method, model, data and budget in a line.
        headline: The result in a sentence.
        tiles: Numbers at the top.
        sections: What there is, in order.
        data: The same for machines.
    """

    name: str
    about: str
    headline: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    data: Mapping[str, Any] = field(default_factory=dict)
