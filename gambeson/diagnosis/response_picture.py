"""The picture of responses: loss and accuracy along the depth, a line per size of the perturbation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gambeson.diagnosis.response import Kind, Response

STYLES: dict[Kind, str] = {"adversarial": "o-", "random": "^:"}
WAYS: dict[Kind, str] = {"adversarial": "up the gradient", "random": "at random"}


def draw_responses(rows: Mapping[str, Response], path: Path, title: str = "") -> None:
    """Draw the rise of the loss, and accuracy, against the layers from front to back, groups of layers at the right.

    A column per set of images, two rows per checkpoint. Losses have one scale in a row, so that images can be compared.
    The dashed line is the accuracy of the model as it is. Bands are the intervals of the differences to that model, of
    what was moved up the gradient.

    Args:
        rows: Responses by checkpoint; every checkpoint has the same groups, images, ways and sizes.
        path: Picture to write; its ending is the format.
        title: The heading.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    first = next(iter(rows.values()))
    names = [*first.layers, *[name for name in first.groups if name not in first.layers]]
    width = 1.2 + len(first.whole) * max(2.4, 0.6 + 0.14 * len(names))
    tall = 0.9 + 0.06 * max(map(len, names)) + 3.6 * len(rows)
    figure = Figure(figsize=(width, tall), facecolor="white", layout="constrained")
    axes = figure.subplots(2 * len(rows), len(first.whole), squeeze=False, sharex=True, sharey="row")
    for number, (checkpoint, found) in enumerate(rows.items()):
        for column, inputs in enumerate(found.whole):
            above, below = axes[2 * number][column], axes[2 * number + 1][column]
            _lines(above, found, names, inputs, loss=True)
            _lines(below, found, names, inputs, loss=False)
            before = found.whole[inputs]
            below.axhline(100 * before.accuracy.value, color="grey", linewidth=0.8, linestyle="--")
            below.set_ylim(0, 102)
            above.set_title(f"{inputs}, cross-entropy {float(before.loss.mean()):.3g}", fontsize=9)
            if column == 0:
                above.set_ylabel(f"{checkpoint}\nrise of the cross-entropy", fontsize=8)
                below.set_ylabel("accuracy, %", fontsize=8)
    for panel in axes[-1]:
        panel.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    handles, labels = axes[0][0].get_legend_handles_labels()
    ways, sizes = len(first.settings["kinds"]), len(first.settings["rhos"])
    order = [way * sizes + size for size in range(sizes) for way in range(ways)]  # a legend fills column by column
    figure.legend(
        [handles[k] for k in order], [labels[k] for k in order], loc="outside lower center", ncols=sizes, fontsize=7
    )
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    save(figure, path)


def _lines(axis: Axes, found: Response, names: Sequence[str], inputs: str, *, loss: bool) -> None:
    """A line per way and size, layers joined and groups not."""
    layers = len(found.layers)
    scale, start = (1, 0.0) if loss else (100, found.whole[inputs].accuracy.value)
    for kind in found.settings["kinds"]:
        for number, rho in enumerate(found.settings["rhos"]):
            colour = COLOURS[number % len(COLOURS)]
            moves = [found.of(name, inputs, rho, kind) for name in names]
            values = [found.rise(one) if loss else found.change(one) for one in moves]
            shown = [[scale * _finite(start + getattr(v, end)) for v in values] for end in ("value", "low", "high")]
            label = f"{100 * rho:g} % {WAYS[kind]}"
            mark, line = STYLES[kind][0], STYLES[kind][1:]
            for joined, part in ((True, slice(0, layers)), (False, slice(layers, None))):
                at = range(len(names))[part]
                middle, low, high = (row[part] for row in shown)
                if not at:
                    continue
                form = f"{mark}{line if joined else ''}"
                axis.plot(at, middle, form, color=colour, markersize=3, linewidth=1, label=label)
                label = "_nolegend_"
                if kind == "adversarial" and joined:
                    axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
                elif kind == "adversarial":
                    axis.vlines(at, low, high, color=colour, linewidth=1)
    if 0 < layers < len(names):
        axis.axvline(layers - 0.5, color="black", linewidth=0.5)
    axis.grid(alpha=0.3)
    axis.tick_params(axis="y", labelsize=7)


def _finite(value: float) -> float:
    """A gap where there is no number."""
    return value if math.isfinite(value) else math.nan
