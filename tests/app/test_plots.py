"""Training curves as a picture."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from app.helpers import Cli, assert_error
from gambeson.app.plots import COLOURS, LABELS, PANELS, curves
from gambeson.core.errors import FileError, GambesonError, InputError, RunError
from gambeson.engine.run import Run

Finished = Callable[[str], Path]


def texts(picture: Path) -> list[str]:
    """What an SVG says: matplotlib draws text as paths and leaves it in comments."""
    ElementTree.parse(picture)  # well-formed
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", picture.read_text(), re.DOTALL)]


def test_the_curves_of_a_real_run(finished: Finished) -> None:
    run = Run.open(finished("r"))
    curves([run], Path("r.svg"))
    said = texts(Path("r.svg"))

    assert set(PANELS) <= set(said)
    assert {"epoch", "accuracy, %"} <= set(said)
    assert [said.count(f"r, {label}") for label in ("clean", "FGSM", "PGD-10")] == [1, 1, 2]


def test_every_run_has_a_colour(finished: Finished) -> None:
    runs = [Run.open(finished(name)) for name in ("one", "two")]
    curves(runs, Path("both.svg"))
    drawn = Path("both.svg").read_text()

    assert {"one, clean", "two, clean"} <= set(texts(Path("both.svg")))
    assert all(colour.lower() in drawn for colour in COLOURS[:2])
    assert not any(colour.lower() in drawn for colour in COLOURS[2:-1])
    assert len(set(COLOURS)) == 7
    assert set(LABELS) == {key for keys in PANELS.values() for key in keys}


def test_the_ending_is_the_format(finished: Finished) -> None:
    run = Run.open(finished("r"))
    curves([run], Path("r.png"))
    with Image.open("r.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 400


def test_a_panel_without_curves_is_left_out(finished: Finished) -> None:
    run = Run.open(finished("r"))
    rows = [row for row in run.rows() if "probe/gap" not in row]
    run.metrics.unlink()
    for row in rows:
        run.log(row)
    curves([run], Path("r.svg"))

    assert "validation" in texts(Path("r.svg"))
    assert not any("probe" in text for text in texts(Path("r.svg")))


def test_no_figure_stays_open(finished: Finished) -> None:
    from matplotlib import pyplot

    run = Run.open(finished("r"))
    curves([run], Path("r.svg"))
    with pytest.raises(InputError):
        curves([run], Path("r.xyz"))

    assert pyplot.get_fignums() == []


def test_more_runs_than_colours_are_refused(finished: Finished) -> None:
    run = Run.open(finished("r"))
    with pytest.raises(InputError, match="a picture of 8 runs cannot be read; at most 7"):
        curves([run] * 8, Path("r.svg"))

    assert not Path("r.svg").exists()


def test_a_run_without_metrics_is_refused(finished: Finished) -> None:
    run = Run.open(finished("r"))
    for content in ("", '{"step": 1, "epoch": 0.5, "train/loss": 2.0}\n'):
        run.metrics.write_text(content)
        with pytest.raises(RunError, match="r: no validation and no sentinel in the metrics yet"):
            curves([run], Path("r.svg"))

    assert not Path("r.svg").exists()


@pytest.mark.parametrize(
    ("name", "kind"), [("r.xyz", InputError), ("nowhere/r.svg", FileError), ("a-folder.svg", FileError)]
)
def test_a_picture_that_cannot_be_written(name: str, kind: type[GambesonError], finished: Finished) -> None:
    run = Run.open(finished("r"))
    Path("a-folder.svg").mkdir()
    before = sorted(Path().rglob("*"))
    with pytest.raises(kind, match=f"cannot write the picture {name}: .") as error:
        curves([run], Path(name))

    assert error.value.hint == "name a .svg or .png file"
    assert sorted(Path().rglob("*")) == before


def test_a_picture_without_an_ending_is_refused_or_written_where_it_is_said(finished: Finished) -> None:
    run = Run.open(finished("r"))
    try:
        curves([run], Path("picture"))
    except InputError:
        return
    assert Path("picture").is_file()


def test_runs_of_one_name_in_two_folders_are_both_drawn(finished: Finished) -> None:
    runs = [Run.open(finished(name)) for name in ("a/r", "b/r")]
    curves(runs, Path("both.svg"))

    assert COLOURS[1].lower() in Path("both.svg").read_text()


# from the command line


def test_one_run_may_be_drawn_alone(cli: Cli, finished: Finished) -> None:
    finished("r")
    result = cli("runs", "compare", "r", "--plot", "x.svg")

    assert result == (0, "", "wrote x.svg\n")
    assert "r, PGD-10" in texts(Path("x.svg"))


def test_two_runs_are_drawn_and_compared(cli: Cli, finished: Finished) -> None:
    finished("one")
    finished("two")
    alone = cli("runs", "compare", "one", "two")
    result = cli("runs", "compare", "one", "two", "--plot", "x.png")

    assert result == (0, alone.out, "wrote x.png\n")
    assert Path("x.png").is_file()


def test_a_plot_of_nothing_is_wrong_usage(cli: Cli) -> None:
    assert_error(cli("runs", "compare", "--plot", "x.svg"), 2, "at least two runs, or one with --plot FILE")
    assert not Path("x.svg").exists()


def test_a_plot_that_cannot_be_written_is_said(cli: Cli, finished: Finished) -> None:
    finished("r")
    assert_error(
        cli("runs", "compare", "r", "--plot", "x.xyz"), 2, "cannot write the picture x.xyz", "name a .svg or .png"
    )
