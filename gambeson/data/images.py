"""Image files of a folder or a zip archive, listed without the hidden ones and decoded to one array."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gambeson.core.errors import DataError
from gambeson.data.files import damaged

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, eq=False)
class Tree:
    """Files below a folder or inside a zip archive, read alike.

    Attributes:
        where: The folder or the archive.
        names: Paths relative to it, with slashes, sorted; without hidden files and folders.
        read: Content of a file by its name.
    """

    where: Path
    names: tuple[str, ...]
    read: Callable[[str], bytes]

    def images(self, prefix: str) -> list[str]:
        """Names of the image files below the folder `prefix`, sorted."""
        return [n for n in self.names if n.startswith(f"{prefix}/") and _is_image(n)]

    def images_by_folder(self) -> dict[str, list[str]]:
        """Names of the image files below every folder at the top, sorted: in one pass, for a million files."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            top, slash, _ = name.partition("/")
            if slash and _is_image(name):
                found.setdefault(top, []).append(name)
        return found


def unlisted(folder: Path) -> Tree:
    """A folder whose files are known already: it can be read from, and lists none."""
    return Tree(folder, (), lambda name: (folder / name).read_bytes())


@contextmanager
def open_tree(path: Path) -> Iterator[Tree]:
    """Open a folder, or a zip archive whose files all lie in one folder, as a `Tree`.

    Args:
        path: Folder, or `.zip` file.

    Yields:
        The tree, readable inside the `with` block.

    Raises:
        DataError: If the archive is truncated or corrupt.
    """
    if path.is_dir():
        yield replace(unlisted(path), names=_walk(path))
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, f"{path.stat().st_size:,} bytes, {error}") from error
    with archive:
        inside = [name for name in archive.namelist() if not name.endswith("/") and not _is_hidden(name)]
        tops = {name.partition("/")[0] for name in inside}
        top = f"{tops.pop()}/" if len(tops) == 1 else ""
        names = tuple(sorted(name.removeprefix(top) for name in inside))
        yield Tree(path, names, lambda name: archive.read(top + name))


def decode(
    tree: Tree, names: Sequence[str], size: int, *, resize: bool, threads: int | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode image files to RGB; grey images are repeated in the three channels, EXIF rotation is applied.

    Args:
        tree: Where they lie.
        names: Their names in the tree, `N` of them.
        size: Height and width of the result, pixels.
        resize: Bring other sizes to it: short side to `size` (bicubic, antialiased), then the centre. Otherwise another
            size is an error.
        threads: How many decode at the same time; 1 is this one, None a few more than there are cores.

    Returns:
        Images, uint8, shape `(N, 3, size, size)`.

    Raises:
        DataError: If a file cannot be decoded, has 16 or 32 bits a channel, or is of another size.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()  # here rather than by the first image of several threads at once
    images = np.empty((len(names), 3, size, size), np.uint8)

    def put(position: int) -> None:
        name = names[position]
        try:
            image = _open(tree.read(name))
        except Exception as error:  # Pillow and zipfile raise a dozen kinds on damaged files
            reason = "it is no image" if isinstance(error, UnidentifiedImageError) else error
            raise DataError(
                f"{tree.where / name} cannot be decoded: {reason}",
                hint="remove or replace this image, or copy the data set again",
            ) from error
        if resize:
            image = _square(image, size)
        elif image.size != (size, size):
            raise damaged(tree.where / name, f"it is {image.size[0]}x{image.size[1]} pixels, expected {size}x{size}")
        images[position] = np.asarray(image).transpose(2, 0, 1)

    if threads == 1:
        for position in range(len(names)):
            put(position)
        return images
    with ThreadPoolExecutor(threads) as pool:  # Pillow decodes outside the interpreter lock
        for _ in pool.map(put, range(len(names))):
            pass
    return images


def _open(content: bytes) -> Image:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content)) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip them to white instead of scaling
            raise ValueError(f"mode {image.mode} has more than 8 bits a channel; convert it to 8 bits")
        return ImageOps.exif_transpose(image).convert("RGB")


def _square(image: Image, size: int) -> Image:
    from PIL import Image

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _walk(path: Path) -> tuple[str, ...]:
    names = []
    for folder, inner, files in os.walk(path, followlinks=True):
        inner[:] = [name for name in inner if not _is_hidden(name)]
        relative = Path(folder).relative_to(path).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        names += [prefix + name for name in files if not _is_hidden(name)]
    return tuple(sorted(names))
