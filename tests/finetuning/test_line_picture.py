"""The picture of a line: the right curves in the right panel, the rule's limit and choice, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gambeson.core.errors import InputError
from gambeson.evaluation.statistics import wilson
from gambeson.finetuning import Line, Point, draw_line

FOUND = Line(
    tuple(
        Point(alpha, wilson(clean, 1200), wilson(robust, 1200), (robust / 1200,))
        for alpha, clean, robust in ((0.0, 900, 600), (0.5, 960, 606), (1.0, 990, 480))
    ),
    0.5,
    0.01,
)


def drawn(monkeypatch: pytest.MonkeyPatch, title: str = "") -> Figure:
    """The figure that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr("gambeson.finetuning.line_picture.save", lambda figure, path: figures.append(figure))
    draw_line(FOUND, Path("unused.svg"), title)
    return figures[0]


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_picture_is_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"line.{ending}"
    draw_line(FOUND, path, "run")
    assert path.stat().st_size > 1000


def test_the_panels_show_the_accuracies_in_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, robust = drawn(monkeypatch).axes
    assert [axis.get_title() for axis in (clean, robust)] == ["clean accuracy, %", "robust accuracy, %"]
    for axis, wanted in ((clean, [75, 80, 82.5]), (robust, [50, 50.5, 40])):
        curve = axis.lines[0]
        assert list(curve.get_xdata()) == [0, 0.5, 1]
        assert list(curve.get_ydata()) == pytest.approx(wanted)
        assert "chosen, 0.5" in axis.get_xlabel()
        assert list(axis.lines[-1].get_xdata()) == [0.5, 0.5]


def test_the_least_allowed_is_one_tolerance_below_alpha_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, robust = drawn(monkeypatch).axes
    assert len(clean.lines) == 2  # no limit there
    assert list(robust.lines[1].get_ydata()) == pytest.approx([49, 49])
    assert [text.get_text() for text in robust.texts] == ["least allowed"]


@pytest.mark.parametrize(("title", "wanted"), [("a$b_$c, ", "a$b_$c, , n = 1,200"), ("", "n = 1,200 images, band")])
def test_the_heading_says_how_many_images(title: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heading = drawn(monkeypatch, title).get_suptitle()
    assert heading.startswith(wanted)
    assert heading.endswith("Wilson 95 %")


def test_names_of_runs_are_no_mathematics(tmp_path: Path) -> None:
    draw_line(FOUND, tmp_path / "line.svg", r"a$\nosuch$b")
    assert (tmp_path / "line.svg").is_file()


def test_a_single_point_is_a_line(tmp_path: Path) -> None:
    draw_line(Line(FOUND.points[:1], 0.0, 0.001), tmp_path / "line.svg")
    assert (tmp_path / "line.svg").is_file()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the picture"):
        draw_line(FOUND, tmp_path / "line.xyz")
    with pytest.raises(InputError, match="alpha 0 was not measured"):
        draw_line(Line(FOUND.points[1:], 0.5, 0.01), tmp_path / "line.svg")
    assert not list(tmp_path.iterdir())
