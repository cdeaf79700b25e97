"""The picture of criticality: a bar per layer in the order of the model, the least critical one in another colour."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gambeson.core.errors import InputError
from gambeson.diagnosis import draw_criticality
from gambeson.diagnosis.mrc import MRC, Criticality, LayerCriticality
from gambeson.diagnosis.pictures import COLOURS

ROWS = (
    LayerCriticality("stem.conv", (4, 1, 3, 3), 1.5, 2.5, 0.1, 0.1, 10),
    LayerCriticality("block_1$x$.conv", (4, 4, 3, 3), 0.25, 1.25, 0.45, 0.1, 10),
    LayerCriticality("linear", (3, 64), 0.1, 1.1, 0.55, 0.1, 2, pruned=True),
)
FOUND = Criticality(ROWS, 1.0, 0.5, 1234, MRC(), "cached")


def drawn(monkeypatch: pytest.MonkeyPatch, title: str = "", found: Criticality = FOUND) -> Figure:
    """The figure that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr("gambeson.diagnosis.criticality_picture.save", lambda figure, path: figures.append(figure))
    draw_criticality(found, Path("unused.svg"), title)
    return figures[0]


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_the_picture_is_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"criticality.{ending}"
    draw_criticality(FOUND, path, r"run$\nosuch$")
    assert path.stat().st_size > 1000


def test_the_names_can_be_read_in_the_svg(tmp_path: Path) -> None:
    draw_criticality(FOUND, tmp_path / "c.svg", "my-run")
    text = (tmp_path / "c.svg").read_text()
    for word in ("stem.conv", "linear", "my-run, n = 1,234 adversarial images, robust accuracy 50.0%"):
        assert word in text


def test_every_layer_has_its_bar_in_both_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = drawn(monkeypatch).axes
    assert [text.get_text() for text in left.get_yticklabels()] == [row.layer for row in ROWS]
    assert [bar.get_width() for bar in left.patches] == pytest.approx([1.5, 0.25, 0.1])
    assert [bar.get_width() for bar in right.patches] == pytest.approx([40, 5, -5])  # a layer may gain
    assert [text.get_text() for text in left.texts] == ["1.5", "0.25", "0.1"]
    assert [text.get_text() for text in right.texts] == ["40.0", "5.0", "-5.0"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first layer on top


def test_the_numbers_of_negative_bars_do_not_cover_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(row, mrc=mrc) for row, mrc in zip(ROWS, (0.01, -0.3, -0.001), strict=True))
    figure = drawn(monkeypatch, found=replace(FOUND, layers=rows))
    FigureCanvasAgg(figure).draw()
    left = figure.axes[0]
    names = [label.get_window_extent() for label in left.get_yticklabels()]
    numbers = [text.get_window_extent() for text in left.texts]
    assert [text.get_text() for text in left.texts] == ["0.01", "-0.3", "-0.001"]
    assert not any(name.overlaps(number) for name in names for number in numbers)
    zero = left.transData.transform((0, 0))[0]
    assert all(number.x0 >= zero for number in numbers)


def test_a_panel_of_zeros_begins_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tuple(replace(row, accuracy=0.5) for row in ROWS)
    left, right = drawn(monkeypatch, found=replace(FOUND, layers=rows)).axes
    assert right.get_xlim() == (0, 1)
    assert left.get_xlim()[0] == 0


def test_the_least_critical_layer_stands_out_and_bounds_are_hatched(monkeypatch: pytest.MonkeyPatch) -> None:
    for axis in drawn(monkeypatch).axes:
        assert [to_hex(bar.get_facecolor()) for bar in axis.patches] == [
            to_hex(COLOURS[k]) for k in (0, 1, 0)
        ]  # not the pruned one, of which only a bound is known
        assert [bool(bar.get_hatch()) for bar in axis.patches] == [False, False, True]


def test_a_picture_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the picture"):
        draw_criticality(FOUND, tmp_path / "c.xyz")
    assert not list(tmp_path.iterdir())
