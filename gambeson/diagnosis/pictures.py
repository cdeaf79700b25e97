"""What the pictures share: colours, and a figure that is written, or a sentence that says why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gambeson.core.errors import FileError, InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HINT = "name a .svg or .png file"


def require_picture(path: Path) -> None:
    """Refuse a picture that could not be written, before any work is done for it.

    Raises:
        InputError: No ending, or one that is no format.
        FileError: There is a folder of that name, or no folder to write into.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    if not path.suffix:
        raise InputError(f"the picture {path} needs an ending", hint=HINT)
    if path.suffix[1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"cannot write the picture {path}: {path.suffix} is no format for pictures", hint=HINT)
    if path.is_dir():
        raise FileError(f"cannot write the picture {path}: it is a folder", hint=HINT)
    if not path.parent.is_dir():
        raise FileError(f"cannot write the picture {path}: there is no folder {path.parent}", hint="make it first")


def save(figure: Figure, path: Path, dpi: int = 150) -> None:
    """Write a figure; the ending is the format (`.svg`, `.png`, `.pdf`).

    Raises:
        InputError: The format is unknown.
        FileError: The file cannot be written.
    """
    try:
        figure.savefig(path, dpi=dpi)
    except (OSError, ValueError) as error:
        kind = FileError if isinstance(error, OSError) else InputError
        raise kind(f"cannot write the picture {path}: {str(error).splitlines()[0]}", hint=HINT) from None
