"""Charts as SVG to stand in a page: text stays text, colours are the page's variables, so that light and dark work."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gambeson.app.report.blocks import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#0a0a01", "#0a0a02", "#0a0a03"
SERIES = tuple(f"#0b0b0{number}" for number in range(1, 8))
"""Stand for variables of the page: matplotlib wants colours that it can read."""

VARIABLES = {INK: "ink", SOFT: "soft", GRID: "grid"} | {colour: f"series-{n}" for n, colour in enumerate(SERIES, 1)}
MARKERS = "osD^vPX"
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)), (0, (8, 2)), (0, (3, 3)), (0, (1, 3)))
WIDTH, HEIGHT = 4.8, 3.0
"""Inches; the page shows a chart a little larger on a desktop and a little smaller on a phone."""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: Its name.
        x: Where.
        y: How much.
        low: Lower ends of the intervals, if there are any.
        high: Upper ends.
        colour: Number of its colour; by default its place among the lines.
        style: Number of its dashes and marker; by default as the colour.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: int | None = None
    style: int | None = None


@dataclass(frozen=True)
class Bar:
    """A value with its interval, in a row of its own."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0


@dataclass(frozen=True)
class Mark:
    """A place on the x axis to be named."""

    x: float
    label: str


def line_chart(
    lines: Sequence[Line],
    title: str,
    *,
    x: str,
    y: str,
    limits: tuple[float, float] | None = None,
    marks: Sequence[Mark] = (),
    points: bool | None = None,
    note: str = "",
    ticks: Sequence[str] | None = None,
    log: bool = False,
) -> Chart:
    """Lines, told apart by colour, dashes and markers.

    Args:
        lines: At least one.
        title: What the chart shows.
        x: Title of the x axis.
        y: Title of the y axis.
        limits: Ends of the y axis.
        marks: Vertical lines with names.
        points: Whether every point has a marker; by default where there are few.
        note: Words below.
        ticks: Names of the places 0, 1, 2, ... on the x axis.
        log: Whether the y axis is logarithmic.
    """
    with _figure(WIDTH, HEIGHT) as (figure, axes):
        for number, line in enumerate(lines):
            colour = SERIES[(number if line.colour is None else line.colour) % len(SERIES)]
            style = (number if line.style is None else line.style) % len(DASHES)
            few = len(line.x) <= 12 if points is None else points
            axes.plot(
                line.x,
                line.y,
                color=colour,
                linestyle=DASHES[style],
                marker=MARKERS[style] if few else "",
                markersize=4,
                linewidth=1.6,
                label=_short(line.label, 40),
            )
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
        for mark in marks:
            axes.axvline(mark.x, color=SOFT, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                mark.label,
                (mark.x, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=8.5,
                color=SOFT,
            )
        axes.set(xlabel=x, ylabel=y)
        if limits:
            axes.set_ylim(*limits)
        if log:
            axes.set_yscale("log")
        if ticks is not None:
            step = max(1, -(-len(ticks) // 12))
            turned = len(ticks) > 4
            axes.set_xticks(
                range(0, len(ticks), step),
                [_short(name, 22) for name in ticks[::step]],
                rotation=60 if turned else 0,
                ha="right" if turned else "center",
                rotation_mode="anchor",
                fontsize=8.5,
            )
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        if len(lines) > 1 or lines[0].label:
            axes.legend(
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=min(_columns(lines), len(lines)),
                frameon=False,
                fontsize=9,
                labelcolor=INK,
                handlelength=2.4,
                columnspacing=1.2,
            )
        said = "; ".join(_course(line, ticks) for line in lines)
        named = "".join(f" {mark.label} at {mark.x:.4g}." for mark in marks)
        return Chart(title, f"{y} against {x}. {said}.{named}", _svg(figure), note)


def bar_chart(
    bars: Sequence[Bar],
    title: str,
    *,
    x: str,
    limits: tuple[float, float] | None = None,
    dots: bool = False,
    note: str = "",
    labels: Sequence[str] = (),
) -> Chart:
    """Values one below the other, the first at the top.

    Args:
        bars: At least one.
        title: What the chart shows.
        x: Title of the x axis.
        limits: Ends of the x axis.
        dots: Points with intervals instead of bars.
        note: Words below.
        labels: Names of the colours, for a legend.
    """
    with _figure(WIDTH, max(1.2, 0.55 + 0.235 * len(bars) + 0.25 * bool(labels))) as (figure, axes):
        for row, bar in enumerate(bars):
            colour = SERIES[bar.colour % len(SERIES)]
            if dots:
                axes.plot(bar.value, row, MARKERS[bar.colour % len(MARKERS)], color=colour, markersize=5, clip_on=False)
            else:
                axes.barh(row, bar.value, color=colour, height=0.66)
            if bar.low is not None and bar.high is not None:
                axes.plot((bar.low, bar.high), (row, row), color=colour if dots else INK, linewidth=1.6 if dots else 1)
        named = [(row, _short(bar.label)) for row, bar in enumerate(bars) if bar.label]
        axes.set_yticks([row for row, _ in named], [name for _, name in named], fontsize=9)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlabel(x)
        if limits:
            axes.set_xlim(*limits)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        if labels:
            handles = [
                axes.plot([], [], MARKERS[n] if dots else "s", color=SERIES[n], label=name)[0]
                for n, name in enumerate(labels)
            ]
            axes.legend(
                handles=handles,
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
                ncols=3,
                frameon=False,
                fontsize=9,
                labelcolor=INK,
            )
        said = "; ".join(f"{bar.label} {_number(bar.value)}{_interval(bar)}" for bar in bars)
        return Chart(title, f"{x}: {said}.", _svg(figure), note)


def map_chart(
    values: Sequence[Sequence[float]], axis: Sequence[float], title: str, *, x: str, y: str, unit: str, note: str = ""
) -> Chart:
    """Values over a square, as colours with a scale.

    Args:
        values: Rows of numbers; the first row lies at the bottom.
        axis: Where the columns and rows are.
        title: What the chart shows.
        x: Title of the x axis.
        y: Title of the y axis.
        unit: What the colours mean.
        note: Words below.
    """
    import numpy as np

    table = np.asarray(values, dtype=float)
    with _figure(WIDTH, 3.6) as (figure, axes):
        drawn = axes.pcolormesh(axis, axis, table, cmap="cividis", shading="nearest", antialiased=False)
        bar = figure.colorbar(drawn, ax=axes, label=unit)
        bar.outline.set_visible(False)
        bar.ax.yaxis.label.set_color(INK)
        bar.ax.tick_params(colors=SOFT, labelcolor=INK)
        axes.set(xlabel=x, ylabel=y, aspect="equal")
        finite = table[np.isfinite(table)]
        low, high = (finite.min(), finite.max()) if finite.size else (float("nan"), float("nan"))
        centre = table[len(table) // 2][len(table[0]) // 2]
        text = f"{unit} over {x} and {y}: {_number(centre)} at the centre, {_number(low)} to {_number(high)}."
        return Chart(title, text, _svg(figure), note)


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in the page's colours."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "gambeson",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": SOFT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "text.usetex": False,
        "text.parse_math": False,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.formatter.useoffset": False,
    }
    with rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        yield figure, axes


def _svg(figure: Figure) -> str:
    """The figure without what a page does not need: sizes, metadata and names that nothing refers to."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    viewed = re.search(r'viewBox="([^"]*)"', text)
    assert viewed is not None
    head = f'<svg viewBox="{viewed[1]}" role="img" aria-labelledby="KEY-title KEY-text">'
    text = head + text[text.index(">") + 1 :]
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    numbers = {name: f"KEY-{number}" for number, name in enumerate(sorted(used))}
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{numbers[m[1]]}"' if m[1] in numbers else "", text)
    text = re.sub(r'(?:xlink:)?href="#([^"]+)"', lambda m: f'href="#{numbers[m[1]]}"', text)
    text = re.sub(r"url\(#([^)]+)\)", lambda m: f"url(#{numbers[m[1]]})", text)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    text = re.sub(r"('DejaVu Sans'|DejaVu Sans)[^;\"]*", "var(--sans)", text)
    return re.sub(r"\n\s*", "\n", text)


def _short(label: str, most: int = 26) -> str:
    """A label that leaves room for the chart: its middle gives way."""
    half = (most - 1) // 2
    return label if len(label) <= most else f"{label[:half]}…{label[-half:]}"


def _columns(lines: Sequence[Line]) -> int:
    """Columns of a legend that fit beside one another."""
    longest = max(len(line.label) for line in lines)
    return 3 if longest <= 16 else 2 if longest <= 26 else 1


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _interval(bar: Bar) -> str:
    return "" if bar.low is None or bar.high is None else f" ({_number(bar.low)} to {_number(bar.high)})"


def _course(line: Line, ticks: Sequence[str] | None) -> str:
    """A line in words: where it begins and ends, and its extremes."""
    name = f"{line.label}: " if line.label else ""
    if not line.x:
        return f"{name}no points"

    def place(index: int) -> str:
        return ticks[int(line.x[index])] if ticks is not None else f"{line.x[index]:.4g}"

    known = [index for index, value in enumerate(line.y) if value == value]
    if not known:
        return f"{name}no finite values"
    first, last = known[0], known[-1]
    text = f"{name}{_number(line.y[first])} at {place(first)}"
    if last != first:
        text += f", {_number(line.y[last])} at {place(last)}"
        top = max(known, key=lambda index: line.y[index])
        if top not in (first, last):
            text += f", largest {_number(line.y[top])} at {place(top)}"
    return text
