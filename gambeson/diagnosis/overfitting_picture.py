"""The picture of a training's history: accuracies, the signs of a collapse, and the accuracies by class at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from gambeson.diagnosis.class_gaps import ClassGap, ClassGaps
    from gambeson.diagnosis.overfitting import Overfitting

CLASSES = 20
"""Classes in a picture that can still be read."""


def draw_overfitting(found: Overfitting, path: Path, title: str = "") -> None:
    """Draw accuracies against epochs with the gap between FGSM and PGD-10 filled, below them abnormal examples and
    gradient alignment, below those the accuracies by class.

    The collapse is a band from the last healthy look to the first collapsed one. Panels without numbers are left out.

    Args:
        found: The diagnosis.
        path: Picture to write; its ending is the format.
        title: The heading.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    signs = any(look.aae is not None or look.alignment is not None for look in found.looks)
    gaps = list(found.classes.items())[-1:]
    heights = [2.8, *([1.6] if signs else []), *([2.0] if gaps else [])]
    figure = Figure(figsize=(7.6, 0.5 + 1.15 * sum(heights)), facecolor="white", layout="constrained")
    axes = [row[0] for row in figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)]
    _accuracies(axes[0], found)
    if signs:
        axes[1].sharex(axes[0])
        _signs(axes[1], found)
    over_time = axes[: 1 + signs]
    for axis in over_time:
        _mark(axis, found)
        axis.grid(alpha=0.3)
        # Beside the panel: within it a curve may run anywhere.
        axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    over_time[-1].set_xlabel("epoch", fontsize=8)
    for name, one in gaps:
        _classes(axes[-1], name, one)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=10, parse_math=False)
    save(figure, path)


def _accuracies(axis: Axes, found: Overfitting) -> None:
    """On the probe batch, on the validation images and in training, in percent."""
    if found.looks:
        epochs = [look.epoch for look in found.looks]
        fgsm, pgd = ([100 * getattr(look, key) for look in found.looks] for key in ("fgsm", "pgd"))
        axis.fill_between(epochs, pgd, fgsm, color="0.85", linewidth=0, label="gap")
        axis.plot(epochs, fgsm, "o-", color=COLOURS[0], markersize=3, linewidth=1.2, label="FGSM, probe")
        axis.plot(epochs, pgd, "o-", color=COLOURS[1], markersize=3, linewidth=1.2, label="PGD-10, probe")
    for key, style, label in (("clean", ":", "clean, validation"), ("robust", "--", "PGD-10, validation")):
        points = [(one.epoch, 100 * getattr(one, key)) for one in found.validations if getattr(one, key) is not None]
        if points:
            mark = "." if len(points) == 1 else ""
            axis.plot(*zip(*points, strict=True), style, marker=mark, color=COLOURS[2], linewidth=1.2, label=label)
    points = [(one.epoch, 100 * one.robust) for one in found.training if one.robust is not None]
    if points:
        mark = "." if len(points) == 1 else ""
        axis.plot(*zip(*points, strict=True), marker=mark, color="0.6", linewidth=0.9, label="own attack, training")
    if found.robust and found.robust.best.robust is not None:
        best = found.robust.best
        axis.plot(best.epoch, 100 * found.robust.best.robust, "*", color=COLOURS[2], markersize=9, label="best")
    axis.set_ylim(0, 102)
    axis.set_ylabel("accuracy, %", fontsize=8)


def _signs(axis: Axes, found: Overfitting) -> None:
    """Abnormal adversarial examples and gradient alignment."""
    for key, style, colour, label in (
        ("alignment", "s-", COLOURS[3], "gradient alignment"),
        ("aae", "^-", COLOURS[6], "abnormal examples"),
    ):
        points = [(look.epoch, getattr(look, key)) for look in found.looks if getattr(look, key) is not None]
        if points:
            axis.plot(*zip(*points, strict=True), style, color=colour, markersize=3, linewidth=1.2, label=label)
    lowest = min((look.alignment for look in found.looks if look.alignment is not None), default=0.0)
    axis.set_ylim(min(-0.02, lowest - 0.05), 1.02)
    axis.set_ylabel("cosine, share", fontsize=8)


def _mark(axis: Axes, found: Overfitting) -> None:
    """The collapse, and where the training was healthy again."""
    if found.collapse is None:
        return
    at, healthy = found.collapse.look.epoch, found.collapse.healthy
    if healthy:
        axis.axvspan(healthy.epoch, at, color=COLOURS[4], alpha=0.25, linewidth=0)
    axis.axvline(at, color="0.2", linewidth=1.0, linestyle="--", label="collapse")
    if found.collapse.recovered:
        axis.axvline(found.collapse.recovered.epoch, color="0.2", linewidth=1.0, linestyle=":", label="healthy again")


def _classes(axis: Axes, name: str, gaps: ClassGaps) -> None:
    """A bar for clean accuracy behind one for robust accuracy, with the Wilson intervals of both."""
    rows: list[ClassGap] = sorted(gaps.rows, key=lambda row: -row.gap.value)[:CLASSES]
    rows = [row for row in gaps.rows if row in rows]
    for key, colour, label in (("clean", COLOURS[5], "clean"), ("robust", COLOURS[0], gaps.attack)):
        values = [getattr(row, key) for row in rows]
        low = [100 * (one.value - one.low) for one in values]
        high = [100 * (one.high - one.value) for one in values]
        heights = [100 * one.value for one in values]
        axis.bar(range(len(rows)), heights, 0.75, yerr=(low, high), color=colour, ecolor="0.3", capsize=2, label=label)
    turned = max(len(row.name) for row in rows) > 4
    axis.set_xticks(range(len(rows)), [row.name for row in rows], rotation=45 if turned else 0, parse_math=False)
    axis.set_ylim(0, 108)
    axis.set_ylabel("accuracy, %", fontsize=8)
    left = "" if len(rows) == len(gaps.rows) else f", the {len(rows)} of {len(gaps.rows)} with the largest gaps"
    axis.set_title(f"{name} weights on the test images, by class{left}", fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
