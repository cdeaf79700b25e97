"""The picture of criticality: a bar per layer in the order of the model, the least critical one in another colour."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gambeson.core.errors import InputError
from gambeson.diagnosis import draw_criticality
from gambeson.diagnosis.criticality import MRC, Criticality, LayerCriticality
from gambeson.diagnosis.pictures import COLOURS

ROWS = (
    LayerCriticality("stem.conv", (4, 1, 3, 3), 1.5, 2.5, 0.1, 0.1, 10),
    LayerCriticality("block_1$x$.conv", (4, 4, 3, 3), 0.25, 1.25, 0.45, 0.1, 10),
    LayerCriticality("linear", (3, 64), 0.1, 1.1, 0.55, 0.1, 2, pruned=True),
)
FOUND = Criticality(ROWS, 1.0, 0.5, 1234, MRC(), "cached")


def drawn(monkeypatch: pytest.MonkeyPatch, title: str = "") -> Figure:
    """The figure that would have been written."""
    figures: list[Figure] = []
    monkeypatch.setattr("gambeson.diagnosis.criticality_picture.save", lambda figure, path: figures.append(figure))
    draw_criticality(FOUND, Path("unused.svg"), title)
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
