"""What is seen of a folder of images before it is read."""

from pathlib import Path

import pytest
from PIL import Image

from gambeson.core.errors import DataError
from gambeson.data.folder import read_folder
from gambeson.data.survey import LOOKED_AT, Survey, survey_folder


def fill(base: Path, count: int, size: tuple[int, int] = (12, 20)) -> None:
    for name in ("cat", "dog"):
        (base / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", size, i % 256).save(base / name / f"{i}.png")


@pytest.mark.parametrize(
    ("splits", "has_val"),
    [((), False), (("train", "test"), False), (("train", "val"), False), (("train", "val", "test"), True)],
)
def test_as_many_images_are_counted_as_are_read(splits: tuple[str, ...], has_val: bool, tmp_path: Path) -> None:
    for split in splits or (".",):
        fill(tmp_path / split, 10)
    found = survey_folder(tmp_path)

    assert found == Survey(20 if splits else 16, 12, has_val)
    assert len(read_folder(tmp_path, size=8).train) == found.count


def test_what_is_no_image_is_not_counted_and_not_opened(tmp_path: Path) -> None:
    fill(tmp_path / "train", 10)
    fill(tmp_path / "test", 2)
    (tmp_path / "train/cat/notes.txt").write_text("no image")
    (tmp_path / "train/lost.png").write_bytes(b"in no class folder")
    (tmp_path / "train/.hidden").mkdir()
    (tmp_path / "train/.hidden/0.png").write_bytes(b"")

    assert survey_folder(tmp_path).count == 20


def test_the_side_is_the_median_of_the_shorter_ones(tmp_path: Path) -> None:
    fill(tmp_path, 3, (40, 30))
    Image.new("L", (500, 400)).save(tmp_path / "cat/large.png")

    assert survey_folder(tmp_path).side == 30


def test_of_many_images_some_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 120)
    opened = []
    real = Image.open
    monkeypatch.setattr("PIL.Image.open", lambda file: opened.append(1) or real(file))

    assert survey_folder(tmp_path).count == 192
    assert LOOKED_AT / 2 <= len(opened) <= LOOKED_AT


def test_nothing_to_survey_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images in class folders"):
        survey_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/0.png").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"0\.png cannot be opened"):
        survey_folder(tmp_path)
