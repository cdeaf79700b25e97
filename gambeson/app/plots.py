"""Training curves of runs as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gambeson.core.errors import InputError, RunError
from gambeson.diagnosis.pictures import COLOURS, save
from gambeson.engine.run import Run

PANELS = {
    "validation": {"val/clean_acc": "-", "val/pgd10_acc": "--"},
    "probe batch (training images)": {"probe/fgsm_acc": "-", "probe/pgd10_acc": "--"},
}
LABELS = {
    "val/clean_acc": "clean",
    "val/pgd10_acc": "PGD-10",
    "probe/fgsm_acc": "FGSM",
    "probe/pgd10_acc": "PGD-10",
}


def curves(runs: Sequence[Run], path: Path) -> None:
    """Draw accuracy against epochs, one colour per run; where FGSM and PGD-10 on the probe batch part, a model has
    collapsed.

    Args:
        runs: At most seven.
        path: Picture to write; its ending is the format (`.svg`, `.png`, `.pdf`).

    Raises:
        InputError: Too many runs, or a format that cannot be drawn.
        RunError: There are no metrics.
        FileError: The path cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    if len(runs) > len(COLOURS):
        raise InputError(f"a picture of {len(runs)} runs cannot be read; at most {len(COLOURS)}")
    if not path.suffix:
        raise InputError(f"the picture {path} needs an ending", hint="name a .svg or .png file")
    names = [run.path.name for run in runs]
    labels = names if len(set(names)) == len(names) else [str(run.path) for run in runs]
    rows = {label: run.rows() for label, run in zip(labels, runs, strict=True)}
    panels = {
        title: keys
        for title, keys in PANELS.items()
        if any(key in row for run in rows.values() for row in run for key in keys)
    }
    if not panels:
        raise RunError(f"{', '.join(rows)}: no validation and no sentinel in the metrics yet")
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 3.6), squeeze=False, layout="constrained")
    for axis, (title, keys) in zip(axes[0], panels.items(), strict=True):
        for (name, metrics), colour in zip(rows.items(), COLOURS, strict=False):
            for key, style in keys.items():
                points = [(row["epoch"], 100 * row[key]) for row in metrics if key in row]
                if points:
                    axis.plot(
                        *zip(*points, strict=True),
                        style,
                        color=colour,
                        label=f"{name}, {LABELS[key]}",
                        linewidth=1.5,
                        marker="." if len(points) < 3 else "",
                    )
        axis.set(title=title, xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False)
    try:
        save(figure, path)
    finally:
        plt.close(figure)
