"""The picture of a curve: accuracy against the budget, and how far DeepFool must move the images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from gambeson.evaluation.curve import Curve


def draw_curve(
    found: Curve, path: Path, title: str = "", *, budget: float | None = None, norms: Tensor | None = None
) -> None:
    """Draw accuracy against the budget with the band of its intervals and, where norms are given, their histogram.

    Budgets of Linf are in grey levels, multiples of 1/255.

    Args:
        found: The curve.
        path: Picture to write; its ending is the format.
        title: First words of the heading.
        budget: The run's budget in the curve's norm, marked by a line.
        norms: Minimal norms of the same examples, `(N,)`, as `minimal_norms` gives them: the share above every budget
            is drawn beside the curve.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    from gambeson.evaluation.curve import surviving

    linf = found.settings["norm"] == "Linf"
    scale, unit = (255.0, "eps, multiples of 1/255 (Linf)") if linf else (1.0, "eps (L2)")
    figure = Figure(figsize=(4.6 if norms is None else 8.6, 3.5), facecolor="white", layout="constrained")
    left, *right = figure.subplots(1, 1 if norms is None else 2, squeeze=False)[0]
    budgets, values = [scale * eps for eps in found.grid], [found.accuracy(eps) for eps in found.grid]
    band = [100 * v.low for v in values], [100 * v.high for v in values]
    left.fill_between(budgets, *band, color=COLOURS[0], alpha=0.15, linewidth=0)
    accuracies = [100 * v.value for v in values]
    left.plot(budgets, accuracies, "o-", color=COLOURS[0], markersize=4, label=found.settings["attack"])
    if norms is not None:
        others = [100 * surviving(norms, eps).value for eps in found.grid]
        left.plot(budgets, others, "s--", color=COLOURS[1], markersize=3, linewidth=1, label="DeepFool")
    if budget is not None and scale * budget <= budgets[-1]:
        _mark(left, scale * budget, "the run's eps", ":", rotation=90)
    left.set_ylim(0, 102)
    left.set_xlim(0, 1.02 * budgets[-1])
    left.set_xlabel(unit, fontsize=9)
    left.set_ylabel("accuracy, %", fontsize=9)
    left.legend(fontsize=8, frameon=False)
    if right and norms is not None:
        _histogram(right[0], norms, scale, budget)
        right[0].set_xlabel(unit.replace("eps", "norm"), fontsize=9)
    for axis in (left, *right):
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    words = [*([title] if title else []), f"n = {len(found.y):,}, band: Wilson 95 %"]
    figure.suptitle(", ".join(words), fontsize=9, x=0.01, ha="left", parse_math=False)
    save(figure, path)


def _mark(axis: Axes, place: float, words: str, style: str, *, rotation: int = 0) -> None:
    """A vertical line with its name at the top."""
    axis.axvline(place, color="0.3", linewidth=0.9, linestyle=style)
    axis.annotate(
        words,
        (place, 0.99),
        xycoords=("data", "axes fraction"),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=7,
        color="0.2",
        rotation=rotation,
        va="top",
    )


def _histogram(axis: Axes, norms: Tensor, scale: float, budget: float | None) -> None:
    """Norms of the images that are right as they are and whose class could be changed."""
    moved = norms[(norms > 0) & norms.isfinite()] * scale
    counts, _, _ = axis.hist(moved.numpy(), bins=30, color=COLOURS[1], alpha=0.85)
    axis.set_ylabel("images", fontsize=9)
    axis.set_ylim(0, 1.3 * max(1.0, float(np.max(counts))))  # room for the names of the lines
    if len(moved):
        median = float(moved.quantile(0.5))
        _mark(axis, median, f"median\n{median:.3g}", "--")
        if budget is not None and scale * budget <= float(moved.max()):
            _mark(axis, scale * budget, "the run's eps", ":", rotation=90)
    wrong, kept = int((norms == 0).sum()), int(norms.isinf().sum())
    words = f"DeepFool: {len(moved):,} images, without {wrong:,} wrong as they are"
    axis.set_title(words + (f" and {kept:,} not moved" if kept else ""), fontsize=8)
