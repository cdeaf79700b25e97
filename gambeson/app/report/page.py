"""The page: one HTML file that needs nothing else, and the same as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from itertools import count, groupby
from typing import Any, NamedTuple

from gambeson.app.report.blocks import Block, Chart, Part, Section, Table
from gambeson.evaluation.finding import finite_number

FORMAT = 1
"""Version of the JSON."""
NARROW = 4
"""Columns of a table that stands beside a chart."""


class Stretch(NamedTuple):
    """Blocks that follow one another: charts and narrow tables stand side by side, others below one another."""

    beside: bool
    blocks: list[Block]


def html(title: str, parts: Sequence[Part], shared: Sequence[Section], names: Sequence[str], json: str) -> str:
    """The page.

    Args:
        title: Its heading.
        parts: One per run.
        shared: Sections about all runs.
        names: The runs' names, told apart.
        json: Name of the JSON file beside it.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    folder = files("gambeson.app.report")
    numbers = count(1)

    def drawn(chart: Chart, number: int) -> Markup:
        said = Markup('<title id="c{0}-title">{1}</title><desc id="c{0}-text">{2}</desc>').format(
            number, chart.title, chart.text
        )
        head, end, rest = chart.drawn(number).partition(">")
        return Markup(head + end) + said + Markup(rest)

    template = environment.from_string(folder.joinpath("page.html").read_text())
    return template.render(
        title=title,
        parts=parts,
        shared=shared,
        names=names,
        json=json,
        css=Markup(folder.joinpath("page.css").read_text()),
        version=version("gambeson"),
        date=time.strftime("%Y-%m-%d %H:%M %Z"),
        counter=lambda: next(numbers),
        drawn=drawn,
        runs_of=lambda blocks: list(_stretches(blocks)),
    )


def data(parts: Sequence[Part], shared: Sequence[Section]) -> dict[str, Any]:
    """The same for machines."""
    found = {
        "format": FORMAT,
        "gambeson": version("gambeson"),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "runs": [part.data for part in parts],
        **{section.key: section.data for section in shared if section.data is not None},
    }
    return {key: _finite(value) for key, value in found.items()}


def _finite(value: Any) -> Any:
    """A value for JSON, which has no NaN and no infinity: None stands for them."""
    if isinstance(value, float):
        return finite_number(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(one) for one in value]
    return value


def _stretches(blocks: Iterable[Block]) -> Iterator[Stretch]:
    for beside, some in groupby(blocks, _is_narrow):
        yield Stretch(beside, list(some))


def _is_narrow(block: Block) -> bool:
    return isinstance(block, Chart) or (isinstance(block, Table) and not block.folded and len(block.head) <= NARROW)
