"""The picture of a curve: the points and their band, the run's budget, the histogram, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gambeson.core.errors import InputError
from gambeson.diagnosis import draw_curve
from gambeson.evaluation import Curve

FELL = torch.tensor([0.0, 0.1, 0.1, 0.2, 0.2, 0.2, math.inf, 0.0, 0.1, 0.2], dtype=torch.float64)
NORMS = torch.tensor([0.0, 0.05, 0.12, 0.15, 0.25, math.inf, 0.3, 0.0, 0.08, 0.18], dtype=torch.float64)


def curve(norm: str = "Linf") -> Curve:
    return Curve((0.0, 0.1, 0.2), FELL, torch.zeros(10), 0.5, 0, {"attack": "pgd-5", "norm": norm})


def drawn(monkeypatch: pytest.MonkeyPatch, norm: str = "Linf", **settings: object) -> Figure:
    """The figure that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr("gambeson.diagnosis.curve_picture.save", lambda figure, path: figures.append(figure))
    draw_curve(curve(norm), Path("unused.png"), "my run", **settings)
    return figures[0]


def vertical(axis: Axes) -> list[float]:
    return [float(line.get_xdata()[0]) for line in axis.lines if len(set(line.get_xdata())) == 1]


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_picture_is_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"curve.{ending}"
    draw_curve(curve(), path, r"run$\nosuch$", budget=0.1, norms=NORMS)
    assert path.stat().st_size > 1000


def test_the_points_are_in_percent_over_grey_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    (axis,) = drawn(monkeypatch).axes
    line = axis.lines[0]
    assert list(line.get_xdata()) == pytest.approx([0, 25.5, 51])
    assert list(line.get_ydata()) == pytest.approx([80, 50, 10])
    assert axis.get_xlabel() == "eps, multiples of 1/255 (Linf)"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["pgd-5"]
    corners = axis.collections[0].get_paths()[0].vertices
    for eps in (0.0, 0.1, 0.2):
        found = curve().accuracy(eps)
        ends = corners[abs(corners[:, 0] - 255 * eps) < 1e-9][:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((100 * found.low, 100 * found.high))


def test_euclidean_budgets_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    axis, _ = drawn(monkeypatch, "L2", norms=NORMS, budget=0.1).axes
    assert list(axis.lines[0].get_xdata()) == [0, 0.1, 0.2]
    assert axis.get_xlabel() == "eps (L2)"
    assert vertical(axis) == [0.1]


@pytest.mark.parametrize(("budget", "marks"), [(None, []), (0.1, [25.5]), (0.3, [])])
def test_the_runs_budget_is_marked_where_it_is_in_the_picture(
    budget: float | None, marks: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (axis,) = drawn(monkeypatch, budget=budget).axes
    assert vertical(axis) == pytest.approx(marks)
    assert [text.get_text() for text in axis.texts] == ["the run's eps"] * len(marks)


def test_norms_have_a_histogram_and_a_curve_beside_the_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(monkeypatch, norms=NORMS, budget=0.1)
    left, right = figure.axes
    assert list(left.lines[1].get_ydata()) == pytest.approx([80, 60, 30])  # norms above 0, 0.1 and 0.2
    assert sum(bar.get_height() for bar in right.patches) == 7
    assert min(bar.get_x() for bar in right.patches) == pytest.approx(0.05 * 255)
    assert right.get_title() == "DeepFool: 7 images, without 2 wrong as they are and 1 not moved"
    assert vertical(right) == pytest.approx([0.15 * 255, 0.1 * 255])
    assert right.texts[0].get_text() == "median\n38.2"
    assert figure.get_suptitle() == "my run, n = 10, band: Wilson 95 %"


def test_norms_of_images_that_do_not_move_have_no_median(monkeypatch: pytest.MonkeyPatch) -> None:
    right = drawn(monkeypatch, norms=torch.tensor([0.0, math.inf]), budget=0.1).axes[1]
    assert len(right.texts) == 0
    assert right.get_title() == "DeepFool: 0 images, without 1 wrong as they are and 1 not moved"


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the picture"):
        draw_curve(curve(), tmp_path / "c.xyz")
    assert not list(tmp_path.iterdir())
