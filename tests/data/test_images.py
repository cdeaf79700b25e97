import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gambeson.core.errors import DataError
from gambeson.data.images import decode, open_tree


def read_one(path: Path, size: int, *, resize: bool = True) -> np.ndarray:
    with open_tree(path.parent) as tree:
        return decode(tree, [path.name], size, resize=resize)[0]


def gradient(width: int, height: int) -> Image.Image:
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, 0 * red], axis=-1).round().astype(np.uint8))


def test_a_lossless_image_of_the_right_size_comes_back_exactly(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    for resize in (True, False):
        assert np.array_equal(read_one(tmp_path / "a.png", 16, resize=resize), array.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    gradient(16, 16).convert(mode).save(name)
    image = read_one(name, 16)
    assert image.shape == (3, 16, 16)
    if mode in ("L", "1", "LA"):
        assert (image[0] == image[1]).all()
        assert (image[0] == image[2]).all()


@pytest.mark.parametrize(("width", "height"), [(32, 16), (16, 32), (40, 17), (8, 8), (5, 200)])
def test_the_short_side_is_resized_and_the_centre_kept(tmp_path: Path, width: int, height: int) -> None:
    gradient(width, height).save(tmp_path / "a.png")
    image = read_one(tmp_path / "a.png", 16).astype(float)
    assert image.shape == (3, 16, 16)
    assert image[0].mean() == pytest.approx(127.5, abs=4)
    assert image[1].mean() == pytest.approx(127.5, abs=4)
    short = min(width, height)
    spans = image[0].max() - image[0].min(), image[1].max() - image[1].min()
    for span, side in zip(spans, (width, height), strict=True):
        assert span == pytest.approx(255 * short / side, abs=22)


def test_resizing_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(tmp_path / "a.png")
    image = read_one(tmp_path / "a.png", 8)
    assert image.min() > 120
    assert image.max() < 135


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    gradient(16, 16).save(tmp_path / "a.png", exif=exif)
    image = read_one(tmp_path / "a.png", 16)
    assert image[0, 0, 0] == image[1, 0, 0] == 255
    assert image[0, -1, -1] == 0


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png cannot be decoded: mode I.*8 bits"):
        read_one(tmp_path / "a.png", 16)


@pytest.mark.parametrize("keep", [0, 10, 300])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, keep: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be decoded") as error:
        read_one(path, 16)
    assert str(path) in str(error.value)
    assert "remove or replace" in str(error.value)


def test_a_fixed_size_is_checked(tmp_path: Path) -> None:
    gradient(15, 16).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="15x16 pixels, expected 16x16"):
        read_one(tmp_path / "a.png", 16, resize=False)


def test_hidden_and_other_files_are_not_listed(tmp_path: Path) -> None:
    for name in (
        "c/a.png",
        "c/b.JPG",
        "c/.hidden.png",
        ".git/x.png",
        "c/notes.txt",
        "__MACOSX/c/a.png",
        "c/sub/d.webp",
    ):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(b"content")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in (tmp_path / "folder").rglob("*"):
            archive.write(path, Path("top") / path.relative_to(tmp_path / "folder"))
    for where in ("folder", "a.zip"):
        with open_tree(tmp_path / where) as tree:
            assert tree.names == ("c/a.png", "c/b.JPG", "c/notes.txt", "c/sub/d.webp")
            assert tree.images("c") == ["c/a.png", "c/b.JPG", "c/sub/d.webp"]
            assert tree.read(tree.names[0]) == b"content"


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("top/a.png", bytes(1000))
    path = tmp_path / "a.zip"
    path.write_bytes(buffer.getvalue()[:-30])
    with pytest.raises(DataError, match="damaged") as error, open_tree(path):
        pass
    assert str(path) in str(error.value)


def test_one_thread_decodes_what_many_do(tmp_path: Path) -> None:
    for i in range(5):
        gradient(10 + i, 20).save(tmp_path / f"{i}.png")
    with open_tree(tmp_path) as tree:
        several, one = (decode(tree, tree.names, 8, resize=True, threads=threads) for threads in (None, 1))
    assert np.array_equal(several, one)


def test_images_by_folder_are_those_below_each(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/b/2.JPG", "a b/3.png", "b/4.gif", "b/notes.txt", "c/x.txt", "0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with open_tree(tmp_path) as tree:
        assert tree.images_by_folder() == {top: tree.images(top) for top in ("a", "a b", "b")}
        assert tree.images("a") == ["a/1.png", "a/b/2.JPG"]
