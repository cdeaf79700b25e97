"""The picture of class-activation maps: images, maps, and the pixels that keep the full budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gambeson.diagnosis.cam import CamDiagnosis, rule_name
from gambeson.diagnosis.pictures import COLOURS, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]

COLUMNS = 8
"""Images side by side; more begin a new block."""

CELL, LEFT, RIGHT, GAP, TITLE = 1.15, 1.15, 0.6, 0.06, 0.42
"""Inches: side of a panel, margins, distance of panels, class names above a block."""

CAMS = {"gradcam": "Grad-CAM", "xgradcam": "XGrad-CAM", "layercam": "LayerCAM"}


def draw_cam(found: CamDiagnosis, path: Path, title: str = "") -> None:
    """Draw the images of a diagnosis in columns: the image, the map over it, and the full budget outlined.

    A mask with a channel of its own for each colour has a fourth row: a pixel is red, green, blue or a mixture where
    these channels have the full budget, black where none has.

    Args:
        found: From `diagnose_cam`, with at least one image shown.
        path: Picture to write; its ending is the format.
        title: First words of the heading, such as the run's name.

    Raises:
        InputError: The format of the picture is unknown.
        FileError: The picture cannot be written.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    count, coloured = len(found.shown.x), found.shown.masks.shape[1] == 3
    rows = ["image", "map of the\npredicted class", "full budget,\noutlined"]
    rows = [*rows[:2], "full budget in\nany channel", "full budget\nby channel"] if coloured else rows
    columns, blocks = min(count, COLUMNS), -(-count // COLUMNS)
    block = TITLE + len(rows) * (CELL + GAP)
    width = max(LEFT + columns * (CELL + GAP) + RIGHT, 5.4)
    lines = _heading(found, title, wide=width > 8)
    head = 0.22 + 0.2 * len(lines)
    height = head + blocks * block + 0.08
    figure = Figure(figsize=(width, height), facecolor="white")

    def axes(column: int, top: float, wide: float = CELL, high: float = CELL, shift: float = 0.0) -> Axes:
        left = LEFT + column * (CELL + GAP) + shift
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    for number in range(count):
        row, column = divmod(number, COLUMNS)
        top = head + row * block + TITLE
        for line, panel in enumerate(_panels(found, number)):
            axis = axes(column, top + line * (CELL + GAP))
            _show(axis, panel, found.shown.masks[number].any(0).numpy() if line == 2 else None)
            if column == 0:
                axis.set_ylabel(rows[line], rotation=0, ha="right", va="center", fontsize=8, labelpad=6)
            if line == 0:
                _names(axis, found, int(found.shown.index[number]), labels=column == 0)
            if line == 1 and bool(found.dead[found.shown.index[number]]):
                _note(axis, "empty map")
    for row in range(blocks):
        bar = axes(min(columns, count - row * COLUMNS), head + row * block + TITLE + CELL + GAP, 0.1, CELL, 0.04)
        shades = ListedColormap(_over(np.full((256, 1), 0.5), colormaps["inferno"](np.arange(256))[:, :3]))
        colours = figure.colorbar(ScalarMappable(Normalize(0, 1), shades), cax=bar, ticks=[0, 0.5, 1])
        colours.outline.set_visible(False)
        colours.ax.tick_params(labelsize=7, length=2)
    for place, words in enumerate(lines):
        figure.text(LEFT / width, 1 - (0.26 + 0.2 * place) / height, words, fontsize=9, parse_math=False)
    save(figure, path, dpi=200)


def _heading(found: CamDiagnosis, title: str, *, wide: bool) -> list[str]:
    words = [title] if title else []
    words += [f"{CAMS[found.cam.method]} of {found.site.layer}", f"mask {rule_name(found.rule)}"]
    share = f"{float(found.full.mean()):.1%} of all values at the full budget (n = {len(found.y):,})"
    return [", ".join([*words, share])] if wide else [", ".join(words), share]


def _panels(found: CamDiagnosis, number: int) -> list[Array]:
    """The pictures of one image from above to below, RGB `(H, W, 3)` in [0, 1]."""
    from matplotlib import colormaps

    image = found.shown.x[number].float().permute(1, 2, 0).numpy()
    image = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    heat = colormaps["inferno"](found.shown.maps[number].float().clamp(0, 1).numpy())[..., :3]
    mask = found.shown.masks[number].permute(1, 2, 0).numpy()
    dimmed = np.where(mask.any(2, keepdims=True), image, 0.35 * grey + 0.12)
    panels = [image, _over(grey, heat), dimmed]
    return [*panels, mask.astype(float)] if mask.shape[2] == 3 else panels


def _show(axis: Axes, panel: Array, mask: Array | None) -> None:
    from matplotlib.collections import LineCollection

    axis.imshow(np.clip(panel, 0, 1), interpolation="nearest", extent=(0, panel.shape[1], panel.shape[0], 0))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    if mask is not None:
        edges = outline(mask)
        axis.add_collection(LineCollection(edges, colors="black", linewidths=2.0, capstyle="projecting"))
        axis.add_collection(LineCollection(edges, colors=COLOURS[4], linewidths=1.0, capstyle="projecting"))


def _over(grey: Array, heat: Array) -> Array:
    blend: Array = 0.35 * grey + 0.65 * heat
    return blend


def _names(axis: Axes, found: CamDiagnosis, index: int, *, labels: bool) -> None:
    true, predicted = int(found.y[index]), int(found.predicted[index])
    colour = COLOURS[2] if true == predicted else COLOURS[1]
    for height, label, chosen, shade in ((1.17, "true class", true, "black"), (1.03, "predicted", predicted, colour)):
        name = _short(found.class_names[chosen])
        axis.text(0, height, name, transform=axis.transAxes, fontsize=8, color=shade, va="bottom", parse_math=False)
        if labels:
            axis.text(-0.07, height, label, transform=axis.transAxes, fontsize=8, va="bottom", ha="right")


def _note(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, fontsize=8, color="white", ha="center", va="center")


def _short(name: str) -> str:
    return name if len(name) <= 15 else name[:14] + "…"


def outline(mask: Array) -> list[list[tuple[int, int]]]:
    """The edges between pixels inside and outside of a mask, the border of the image included.

    Args:
        mask: Bool, `(H, W)`.

    Returns:
        Segments `[(x0, y0), (x1, y1)]` along the pixels' sides, in pixels from the upper left corner.

    Examples:
        >>> len(outline(np.ones((2, 3), dtype=bool)))  # its circumference
        10
    """
    padded = np.pad(mask, 1)
    segments = [[(int(x), int(y)), (int(x) + 1, int(y))] for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])]
    segments += [
        [(int(x), int(y)), (int(x), int(y) + 1)] for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])
    ]
    return segments
