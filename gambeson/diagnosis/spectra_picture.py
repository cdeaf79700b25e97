"""The picture of spectra: norms, ranks and drift along the depth, and the singular values of a few layers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.groups import spread
from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from gambeson.diagnosis.spectra import Spectra

PANELS = (
    ("largest", "largest singular value"),
    ("stable_rank", "stable rank"),
    ("drift", "drift from the checkpoint before"),
)


def draw_spectra(found: Spectra, path: Path, title: str = "") -> None:
    """Draw a curve per checkpoint along the layers, and below the singular values of up to five layers.

    Args:
        found: The spectra.
        path: Picture to write; its ending is the format.
        title: The heading.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    layers = [one.layer for one in found.layers[0]]
    panels = PANELS if len(found.checkpoints) > 1 else PANELS[:2]
    chosen = spread(tuple(layers), 5)
    figure = Figure(figsize=(9.5, 5.2 + 0.04 * max(map(len, layers))), facecolor="white", layout="constrained")
    grid = figure.add_gridspec(2, len(panels) * len(chosen))
    for column, (key, label) in enumerate(panels):
        axis = figure.add_subplot(grid[0, column * len(chosen) : (column + 1) * len(chosen)])
        for number, (name, row) in enumerate(zip(found.checkpoints, found.layers, strict=True)):
            values = [getattr(one, key) for one in row]
            if all(value is None for value in values):
                continue
            shown = [value if value is not None and math.isfinite(value) else math.nan for value in values]
            axis.plot(range(len(layers)), shown, "o-", color=COLOURS[number % len(COLOURS)], markersize=3, label=name)
        axis.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
        axis.set_title(label, fontsize=9)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    for column, layer in enumerate(chosen):
        axis = figure.add_subplot(grid[1, column * len(panels) : (column + 1) * len(panels)])
        for number, one in enumerate(found.of(layer)):
            ranks = range(1, len(one.values) + 1)
            axis.plot(ranks, one.values, color=COLOURS[number % len(COLOURS)], linewidth=1.2)
        axis.set_title(layer, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=6)
        axis.set_xlabel("index", fontsize=7)
        if column == 0:
            axis.set_ylabel("singular value", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)
