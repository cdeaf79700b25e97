"""What `gambeson corruptions` shows: the table on the terminal and the picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from gambeson.app.show import new_table, out, print_table
from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from gambeson.evaluation import CorruptionReport


def print_corruptions(report: CorruptionReport, notes: Sequence[str] = ()) -> None:
    """The table of a report: a row for each corruption, a column for each severity, the means, and the notes."""
    about = report.settings
    where = f"checkpoint {about['checkpoint']} (step {about['step']}), {about['data']} test, {about['source']}"
    out.print(f"{escape(str(about['run']))}, {where}, n = {len(report.y)}", soft_wrap=True)
    table = new_table("accuracy, %", *[f"severity {level}" for level in report.severities], "mean")
    for name in report.corruptions:
        cells = [report.accuracy(name, level).value for level in report.severities]
        table.add_row(name, *[f"{100 * value:.1f}" for value in (*cells, report.mean(name).value)])
    cells = [report.mean(severity=level).value for level in report.severities]
    table.add_row("mean", *[f"{100 * value:.1f}" for value in (*cells, report.mean().value)], style="bold")
    print_table(table)
    clean = report.clean_accuracy()
    if clean is not None:
        out.print(f"clean {clean}", markup=False)
    count = f"{len(report.corruptions)} corruptions, severities {', '.join(map(str, report.severities))}"
    out.print(f"OOD {report.mean()}: mean over {count}", markup=False, soft_wrap=True)
    out.print(
        "[..]: 95 %; clean: Wilson; OOD: bootstrap over the images, each of which occurs under every corruption.",
        style="dim",
        markup=False,
        soft_wrap=True,
    )
    for note in notes:
        out.print(note, style="dim", markup=False, soft_wrap=True)


def draw_corruptions(report: CorruptionReport, path: Path, title: str = "") -> None:
    """Draw a line per corruption: a dot for each severity, the stronger the darker, and a bar at their mean.

    Args:
        report: What was measured.
        path: Picture to write; its ending is the format.
        title: First words of the heading, such as the run's name.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    names, levels = report.corruptions, report.severities
    figure = Figure(figsize=(6.4, 1.5 + 0.28 * len(names)), facecolor="white")
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    shades = LinearSegmentedColormap.from_list("severity", ["#CFE6F5", COLOURS[0], "#00253B"])
    for level in levels:
        values = [100 * report.accuracy(name, level).value for name in names]
        axis.plot(
            values,
            range(len(names)),
            "o",
            color=shades((level - 1) / 4),
            markeredgecolor="0.35",
            markeredgewidth=0.4,
            markersize=6,
            label=str(level),
        )
    means = [100 * report.mean(name).value for name in names]
    axis.plot(means, range(len(names)), "|", color=COLOURS[1], markersize=13, markeredgewidth=2, label="mean")
    overall = report.mean()
    axis.axvline(100 * overall.value, color=COLOURS[1], linewidth=1, linestyle="--", zorder=0)
    words = [*([title] if title else []), f"n = {len(report.y):,}"]
    words.append(f"OOD {100 * overall.value:.1f} % (dashed)")
    clean = report.clean_accuracy()
    if clean is not None:
        axis.axvline(100 * clean.value, color="0.3", linewidth=1, linestyle=":", zorder=0)
        words.append(f"clean {100 * clean.value:.1f} % (dotted)")
    axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=8)
    axis.invert_yaxis()
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.set_xlabel("accuracy, %", fontsize=8)
    figure.legend(
        *axis.get_legend_handles_labels(),
        title="severity",
        loc="outside right upper",
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )
    figure.suptitle(", ".join(words), fontsize=9, x=0.01, ha="left", parse_math=False)
    save(figure, path, dpi=200)
