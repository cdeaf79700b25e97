"""How many images a folder holds and how large they are, from names and headers: what defaults are chosen by."""

from __future__ import annotations

import io
import statistics
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gambeson.core.errors import DataError
from gambeson.data.images import IMAGE_SUFFIXES, open_tree

TEST_FRACTION = 0.2
"""Share of a folder without a test split that becomes one."""
LOOKED_AT = 100
"""Images whose size is read, evenly over the folder."""


@dataclass(frozen=True)
class Survey:
    """What a folder of images holds.

    Attributes:
        count: Images to train on and to validate with; a test split that has to be taken from them is subtracted.
        side: Median of the shorter sides, pixels.
        has_val: Whether the folder has a validation split of its own.
    """

    count: int
    side: int
    has_val: bool


def survey_folder(path: Path) -> Survey:
    """Count the training images of a folder of the form that `read_folder` takes, and look at their size.

    Raises:
        DataError: No images in class folders, or one that cannot be opened.
    """
    from PIL import Image

    parts = {name for name in ("train", "val", "test") if (path / name).is_dir()}
    with open_tree(path / "train" if "train" in parts else path) as tree:
        names = [PurePosixPath(name) for name in tree.names]
        images = [str(name) for name in names if len(name.parts) > 1 and name.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise DataError(f"{tree.where} has no images in class folders")
        sides = []
        for name in images[:: -(-len(images) // LOOKED_AT)]:
            try:
                with Image.open(io.BytesIO(tree.read(name))) as image:
                    sides.append(min(image.size))
            except OSError as error:  # Pillow's too
                raise DataError(f"{tree.where / name} cannot be opened: {error}") from None
    count = len(images) if parts & {"test", "val"} else round(len(images) * (1 - TEST_FRACTION))
    return Survey(count, round(statistics.median(sides)), {"val", "test"} <= parts)
