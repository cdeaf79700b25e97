"""The picture of landscapes: a row per checkpoint, a column per group of layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable

    from gambeson.diagnosis.landscape import Landscape

LEVELS = 12


def draw_landscapes(rows: Mapping[str, Sequence[Landscape]], path: Path, title: str = "") -> None:
    """Draw the mean cross-entropy around the weights, or the images.

    Grids become maps in one scale of colours for all that a column shows, so that checkpoints can be compared; lines
    become curves, all checkpoints in one panel per group. Under each map stand the loss in its centre and the rise.

    Args:
        rows: Landscapes by checkpoint; every checkpoint has the same groups in the same order.
        path: Picture to write; its ending is the format.
        title: The heading.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    names, columns = list(rows), list(zip(*rows.values(), strict=True))
    flat = columns[0][0].loss.ndim == 1
    height = 1 if flat else len(names)
    figure = Figure(figsize=(0.6 + 2.3 * len(columns), 0.7 + 2.2 * height), facecolor="white", layout="constrained")
    axes = figure.subplots(height, len(columns), squeeze=False)
    for at, column in enumerate(columns):
        axes[0][at].set_title(column[0].title, fontsize=9)
        if flat:
            _lines(axes[0][at], dict(zip(names, column, strict=True)), legend=at == 0)
            continue
        low, high = _range(column)
        drawn = [_map(axes[row][at], one, low, high) for row, one in enumerate(column)]
        if at == 0:
            for row, name in enumerate(names):
                axes[row][at].set_ylabel(f"{name}\nsecond direction", fontsize=8)
        bar = figure.colorbar(drawn[0], ax=[axes[row][at] for row in range(height)], fraction=0.06, format="%.3g")
        bar.ax.tick_params(labelsize=6)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)


def _range(column: Sequence[Landscape]) -> tuple[float, float]:
    """The smallest and the largest finite loss of a column."""
    values = np.concatenate([one.loss.numpy().ravel() for one in column])
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    return low, high if high > low else low + 1e-6


def _map(axes: Axes, one: Landscape, low: float, high: float) -> ScalarMappable:
    shown = np.clip(np.where(np.isfinite(one.loss.numpy()), one.loss.numpy(), high), low, high)
    drawn = axes.contourf(one.axis, one.axis, shown.T, levels=np.linspace(low, high, LEVELS + 1), cmap="viridis")
    axes.plot(0, 0, "+", color="white", markersize=7)
    rise = f"{one.rise:.3g}" if math.isfinite(one.rise) else "infinite"
    axes.set_xlabel(f"centre {one.centre:.3g}, rise {rise}", fontsize=8)
    axes.set_xticks([one.axis[0], 0, one.axis[-1]])
    axes.set_yticks([one.axis[0], 0, one.axis[-1]])
    axes.tick_params(labelsize=6)
    axes.set_aspect("equal")
    return drawn


def _lines(axes: Axes, by_name: Mapping[str, Landscape], *, legend: bool) -> None:
    for number, (name, one) in enumerate(by_name.items()):
        axes.plot(one.axis, one.loss.numpy(), color=COLOURS[number % len(COLOURS)], linewidth=1.2, label=name)
    axes.axvline(0, color="grey", linewidth=0.5)
    axes.tick_params(labelsize=7)
    if legend:
        axes.set_ylabel("cross-entropy", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
