"""The picture of removal curves: a row per attack, a column per group of layers, a curve per kind of weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from gambeson.diagnosis.shortcuts import Shortcuts

STYLES = {"largest": ("o-", COLOURS[1]), "smallest": ("s--", COLOURS[0]), "random": ("^:", COLOURS[2])}


def draw_shortcuts(found: Shortcuts, path: Path, title: str = "") -> None:
    """Draw accuracy against the share of the weights that was removed, with the bands of its intervals.

    Removals that show a shortcut have a ring.

    Args:
        found: The result.
        path: Picture to write; its ending is the format.
        title: The heading.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    groups, attacks = list(found.settings["groups"]), list(found.whole.outcomes)
    size = (1.0 + 2.6 * len(groups), 0.9 + 1.9 * len(attacks))
    figure = Figure(figsize=size, facecolor="white", layout="constrained")
    axes = figure.subplots(len(attacks), len(groups), squeeze=False, sharex=True, sharey="row")
    for column, group in enumerate(groups):
        for row, attack in enumerate(attacks):
            panel = axes[row][column]
            for mode in found.settings["modes"]:
                style, colour = STYLES[mode]
                curve = found.curve(group, mode)
                shares, values = [100 * one.share for one in curve], [one.accuracy(attack) for one in curve]
                low, high = [100 * v.low for v in values], [100 * v.high for v in values]
                panel.fill_between(shares, low, high, color=colour, alpha=0.12, linewidth=0)
                panel.plot(shares, [100 * v.value for v in values], style, color=colour, markersize=3, label=mode)
                ringed = [one for one in curve[1:] if found.signature(one)]
                panel.plot(
                    [100 * one.share for one in ringed],
                    [100 * one.accuracy(attack).value for one in ringed],
                    "o",
                    markersize=9,
                    markerfacecolor="none",
                    markeredgecolor=colour,
                )
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel(f"{attack}, %", fontsize=8)
        axes[0][column].set_title(group, fontsize=9)
        axes[-1][column].set_xlabel("weights removed, %", fontsize=8)
    for row, attack in enumerate(attacks):  # a collapsed model's few percent are to be seen too
        top = max(100 * one.accuracy(attack).high for one in (found.whole, *found.removals))
        axes[row][0].set_ylim(-0.04 * top, 1.04 * top)
    axes[0][0].legend(fontsize=7, frameon=False)
    if title:
        figure.suptitle(title, fontsize=10)
    save(figure, path)
