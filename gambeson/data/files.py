"""Files of a data set: where they lie, how they are downloaded and verified, what is said of damaged ones."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gambeson.core.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A published file.

    Attributes:
        name: File name, also the name it is stored under.
        url: Where it is published.
        md5: Published checksum.
        folder: Folder inside the data root that a download goes to; empty for the root itself.
    """

    name: str
    url: str
    md5: str
    folder: str = ""


def data_root(root: str | Path | None) -> Path:
    """The folder of the data sets: the argument, else `$GAMBESON_DATA`, else a per-user cache.

    Args:
        root: Folder, or None.

    Returns:
        Absolute path; it need not exist yet.

    Raises:
        DataError: If the path is a file.

    Examples:
        >>> data_root("/data").name
        'data'
    """
    chosen = root if root is not None else os.environ.get("GAMBESON_DATA")
    if not chosen:
        import pooch

        chosen = pooch.os_cache("gambeson")
    path = Path(chosen).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise DataError(
            f"the data folder {path} is a file",
            hint="name a folder with --data-dir or $GAMBESON_DATA; it need not exist",
        )
    return path


def find(root: Path, folders: Iterable[str], names: Iterable[str]) -> Path | None:
    """The first file `root/folder/name` that exists, or None; folders vary slowest.

    Examples:
        >>> find(Path("/nowhere"), ["", "mnist"], ["a.gz"]) is None
        True
    """
    names = tuple(names)
    candidates = (root / folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def download(remote: Remote, root: Path) -> Path:
    """Download a published file and compare its checksum; nothing is stored under its name unless that agrees.

    Args:
        remote: What to download.
        root: Folder of the data sets.

    Returns:
        Path of the complete file.

    Raises:
        DataError: If the server is out of reach, the folder cannot be written, or the checksum differs.
    """
    import pooch
    import requests

    folder = root / remote.folder
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        # pooch writes to a temporary name, compares, then renames: an interruption removes the temporary file.
        fetch = pooch.HTTPDownloader(progressbar=False, timeout=30)
        return Path(pooch.retrieve(remote.url, f"md5:{remote.md5}", remote.name, folder, downloader=fetch))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors; a differing checksum is a ValueError
        if isinstance(error, requests.ConnectionError | requests.Timeout):
            reason = "no connection"  # their own text is three lines of connection pools
        else:
            reason = str(error) or type(error).__name__
        raise DataError(
            f"{remote.name} is not in {root} and cannot be downloaded from {remote.url}: {reason}",
            hint=f"put {remote.name} (md5 {remote.md5}) into {folder},"
            " or name the folder that holds it with --data-dir or $GAMBESON_DATA",
        ) from error
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()  # only succeeds on an empty folder: a failed download leaves none behind


def obtain(remote: Remote, root: Path, folders: Iterable[str], *, verify: bool) -> Path:
    """Find a published file below `root`, else download it.

    Args:
        remote: The file.
        root: Folder of the data sets.
        folders: Folders inside `root` where it customarily lies.
        verify: Compare the checksum of a file that is already there; a download is always compared.

    Returns:
        Path of the file.

    Raises:
        DataError: If it is missing and cannot be downloaded, or its checksum differs.
    """
    path = find(root, folders, [remote.name])
    if path is None:
        return download(remote, root)
    if verify:
        verify_md5(path, remote.md5)
    return path


def md5_of(path: Path) -> str:
    """The md5 of a file, read in blocks: the published checksums are md5 sums."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_md5(path: Path, md5: str | None) -> None:
    """Compare a file with its published checksum.

    Args:
        path: The file.
        md5: Published md5, or None where none was published: that cannot be verified and says so.

    Raises:
        DataError: If the checksum differs or none was published.
    """
    if md5 is None:
        raise DataError(
            f"{path} cannot be verified: no checksum was published for it",
            hint="put the original archive beside it, which is then read and verified instead, or load without verify",
        )
    found = md5_of(path)
    if found != md5:
        raise damaged(path, f"its md5 is {found}, the published one is {md5}")


def read_gzip(path: Path) -> bytes:
    """The bytes of a file, unpacked where its name ends in `.gz`.

    Raises:
        DataError: If the file cannot be read or is truncated or corrupt.
    """
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise damaged(path, f"{path.stat().st_size:,} bytes, {error}") from error


def damaged(path: object, reason: str) -> DataError:
    """The error for a file that is there but not what it should be.

    Examples:
        >>> print(damaged("a.bin", "7 bytes, expected 9"))
        a.bin is damaged: 7 bytes, expected 9
        hint: delete it and run again to download it, or copy it again from the source
    """
    return DataError(
        f"{path} is damaged: {reason}",
        hint="delete it and run again to download it, or copy it again from the source",
    )
