"""The picture of the regional experiment: budgets at the left, accuracies at the right."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.pictures import COLOURS, save
from gambeson.diagnosis.regions import SETUPS, Regions, budget_text, mean_budget
from gambeson.parts.masks import Corner

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHADES = {"eps": "#56B4E9", "uniform": "#8CCBEF", "eps_low": "#DDEFFA"}
"""Fill of the glyphs: the larger the budget, the darker."""


def draw_regions(found: Regions, path: Path, title: str = "") -> None:
    """Draw a line per setup: a glyph of its budgets, and per attack the accuracies: mean, standard deviation, seeds.

    Args:
        found: The results.
        path: Picture to write; its ending is the format.
        title: First words of the heading, such as the data set's name.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 3.1 * len(found.attacks), 4.3), facecolor="white")
    figure.set_layout_engine("constrained", wspace=0.06)
    ratios = [0.75, *[2.2] * len(found.attacks)]
    axes = figure.subplots(1, len(ratios), sharey=True, gridspec_kw={"width_ratios": ratios}, squeeze=False)[0]
    _glyphs(axes[0], found)
    for number, attack in enumerate(found.attacks):
        _points(axes[1 + number], found, attack, COLOURS[number % len(COLOURS)])
    seeds = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "1 seed"
    words = [*([title] if title else []), f"n = {found.n:,} test images", seeds]
    words += [f"attacked at eps {budget_text(found.eval_eps)}"]
    figure.suptitle(", ".join(words), fontsize=9, x=0.01, ha="left", parse_math=False)
    spread = "bar: mean ± standard deviation; small dots: seeds; " if len(found.seeds) > 1 else ""
    unit = "in grey levels of 255" if "/" in budget_text(found.eps) else "as fractions of the pixel range"
    figure.supxlabel(f"{spread}dashed: mean of the uniform control; budgets {unit}", fontsize=7.5)
    save(figure, path, dpi=200)


def _glyphs(axis: Axes, found: Regions) -> None:
    from matplotlib.patches import Rectangle

    side = 0.38
    for line, corner in enumerate(SETUPS.values()):
        if corner is None:
            axis.add_patch(
                Rectangle((0, line - side), 2 * side, 2 * side, facecolor=SHADES["uniform"], edgecolor="0.3")
            )
            _number(axis, side, line, mean_budget(found.eps, found.eps_low), found.eps)
            continue
        for place in ("ul", "ur", "bl", "br"):
            x, y = side * (place[1] == "r"), line + side * ((place[0] == "b") - 1)  # the axis points downwards
            low = place == corner
            shade = SHADES["eps_low" if low else "eps"]
            axis.add_patch(Rectangle((x, y), side, side, facecolor=shade, edgecolor="0.3", linewidth=0.8))
            _number(axis, x + side / 2, y + side / 2, found.eps_low if low else found.eps, found.eps)
    axis.set(xlim=(-0.05, 0.85), ylim=(len(SETUPS) - 0.5, -0.5), aspect="equal", xticks=[])
    axis.set_yticks(range(len(SETUPS)), [_label(corner) for corner in SETUPS.values()], fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title("budget", fontsize=9)


def _points(axis: Axes, found: Regions, attack: str, colour: str) -> None:
    axis.axvline(100 * found.spread("uniform", attack).mean, color="0.55", linewidth=0.9, linestyle="--", zorder=0)
    for line, setup in enumerate(SETUPS):
        short = found.spread(setup, attack)
        values = [100 * value for value in found.accuracy[setup][attack]]
        error = None if short.std is None else 100 * short.std
        if len(values) > 1:
            axis.plot(values, [line + 0.24] * len(values), "o", color=colour, markersize=3, alpha=0.55, linewidth=0)
        axis.errorbar(100 * short.mean, line, xerr=error, fmt="o", color=colour, markersize=6, capsize=3, linewidth=1.5)
    axis.set_title("natural accuracy, %" if attack == "clean" else f"{attack.upper()} accuracy, %", fontsize=9)
    axis.tick_params(labelsize=8, left=False)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.margins(x=0.12)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _label(corner: Corner | None) -> str:
    names = {"u": "upper", "b": "bottom", "l": "left", "r": "right"}
    return "uniform" if corner is None else f"low\n{names[corner[0]]} {names[corner[1]]}"


def _number(axis: Axes, x: float, y: float, budget: float, largest: float) -> None:
    text = f"{255 * budget:.3g}" if "/" in budget_text(largest) else f"{budget:.2g}"
    axis.text(x, y, text, ha="center", va="center", fontsize=6.5)
