"""The picture of criticality: a bar per layer, the loss at the left and the accuracy at the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from gambeson.diagnosis.mrc import Criticality


def draw_criticality(found: Criticality, path: Path, title: str = "") -> None:
    """Draw MRC and the drop of robust accuracy by layer, as the paper's figure 3; the least critical layer stands out.

    Bars of pruned layers, whose MRC is a lower bound, are hatched. Numbers stand at the right of 0.

    Args:
        found: The result.
        path: Picture to write; its ending is the format.
        title: First words of the heading.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    rows = found.layers
    least = found.argmin.layer
    figure = Figure(figsize=(8.5, 1.4 + 0.24 * len(rows)), facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(rows))
    colours = [COLOURS[1] if row.layer == least else COLOURS[0] for row in rows]
    panels = (
        (left, [row.mrc for row in rows], "MRC: increase of the cross-entropy", "{:.3g}"),
        (right, [100 * found.drop(row) for row in rows], "drop of robust accuracy, points", "{:.1f}"),
    )
    for axis, values, label, form in panels:
        bars = axis.barh(places, values, color=colours, height=0.7)
        for bar, row in zip(bars, rows, strict=True):
            if row.pruned:
                bar.set_hatch("//")
        for place, value in zip(places, values, strict=True):  # at the right of 0 even of a bar to the left of it:
            axis.annotate(  # the names of the layers are there
                form.format(value),
                (max(value, 0.0), place),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axis.set_xlabel(label, fontsize=9)
        axis.tick_params(labelsize=8, left=False)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.margins(x=0.12)
        if not any(values):
            axis.set_xlim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
    left.set_yticks(places, [row.layer for row in rows], fontsize=8)
    left.set_ylim(len(rows) - 0.4, -0.6)
    words = [
        *([title] if title else []),
        f"n = {found.n:,} adversarial images",
        f"robust accuracy {found.accuracy:.1%}",
    ]
    figure.suptitle(", ".join(words), fontsize=9, x=0.01, ha="left", parse_math=False)
    save(figure, path)
