"""The picture of a line between two checkpoints: clean and robust accuracy against alpha."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from gambeson.finetuning.interpolate import Line


def draw_line(found: Line, path: Path, title: str = "") -> None:
    """Draw clean and robust accuracy against alpha, as RiFT's figure 1, with intervals and the chosen alpha.

    Args:
        found: The points.
        path: Picture to write; its ending is the format.
        title: First words of the heading.

    Raises:
        InputError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.4), facecolor="white", layout="constrained")
    alphas = [point.alpha for point in found.points]
    start = found.at(0.0)
    panels = (
        (COLOURS[0], "clean accuracy, %", [point.clean for point in found.points], None),
        (COLOURS[1], "robust accuracy, %", [point.robust for point in found.points], start.robust.value),
    )
    for axis, (colour, label, values, level) in zip(figure.subplots(1, 2), panels, strict=True):
        axis.fill_between(
            alphas, [100 * v.low for v in values], [100 * v.high for v in values], color=colour, alpha=0.15
        )
        axis.plot(alphas, [100 * v.value for v in values], "o-", color=colour, markersize=4)
        if level is not None:
            limit = 100 * (level - found.tolerance)
            axis.axhline(limit, color="0.4", linewidth=0.9, linestyle="--")
            axis.annotate("least allowed", (alphas[-1], limit), fontsize=7, color="0.3", ha="right", va="bottom")
        axis.axvline(found.chosen, color="0.2", linewidth=0.9, linestyle=":")
        axis.set_xlabel(f"alpha (dotted: chosen, {found.chosen:g})", fontsize=9)
        axis.set_title(label, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    words = [*([title] if title else []), f"n = {start.clean.n:,} images, band: Wilson 95 %"]
    figure.suptitle(", ".join(words), fontsize=9, x=0.01, ha="left", parse_math=False)
    save(figure, path)
