"""Pictures are refused before any work, or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from gambeson.core.errors import FileError, GambesonError, InputError
from gambeson.diagnosis.pictures import require_picture, save


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("picture", InputError, "needs an ending"),
        ("a.xyz", InputError, ".xyz is no format"),
        ("a.json", InputError, ".json is no format"),
        ("folder.png", FileError, "it is a folder"),
        ("nowhere/a.png", FileError, "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_said_before(
    name: str, kind: type[GambesonError], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(kind, match=reason):
        require_picture(tmp_path / name)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf", "PNG"])
def test_what_is_let_through_can_be_written(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    require_picture(path)
    save(Figure(), path)

    assert path.stat().st_size > 100


def test_a_figure_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write the picture .*a\.xyz: ") as error:
        save(Figure(), tmp_path / "a.xyz")
    assert error.value.hint == "name a .svg or .png file"
