"""Images that stay in their files until they are asked for: what stands for a tensor of pixels too large for memory."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gambeson.core.errors import GambesonWarning
from gambeson.data.images import decode, unlisted

CPU = torch.device("cpu")
LARGE = 2**28
"""Bytes of stored images that are not brought into memory as a whole without a word: a quarter of a GiB."""


class FileNames(Sequence[str]):
    """Many names in two blocks of memory, some forty bytes a name: processes that are forked share them.

    Examples:
        >>> names = FileNames(["cat/1.jpg", "dog/2.jpg"])
        >>> len(names), names[1]
        (2, 'dog/2.jpg')
    """

    def __init__(self, names: Iterable[str]) -> None:
        content = [os.fsencode(name) for name in names]
        self._content = b"".join(content)
        self._ends = np.cumsum([0, *map(len, content)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are of no use
        position = range(len(self))[index]
        return os.fsdecode(self._content[self._ends[position] : self._ends[position + 1]])


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images of a folder as a lazy uint8 tensor `(N, 3, size, size)`: indexing decodes what is asked for.

    `x[index]` is a tensor on `device`, with the pixels that `decode` gives: for slices, integer positions and boolean
    masks. What chooses without decoding is `subset`.

    Attributes:
        where: The folder.
        names: Its files, relative to it.
        size: Height and width that images are brought to, pixels.
        rows: Which of the files these images are, int64 `(N,)`, on the CPU.
        workers: Processes that decode ahead of a training; 0 for none.
        device: Where decoded images go.
    """

    where: Path
    names: FileNames
    size: int
    rows: Tensor
    workers: int = 0
    device: torch.device = CPU

    @property
    def shape(self) -> torch.Size:
        """`(N, 3, size, size)`."""
        return torch.Size((len(self.rows), 3, self.size, self.size))

    @property
    def dtype(self) -> torch.dtype:
        """`torch.uint8`."""
        return torch.uint8

    @property
    def ndim(self) -> int:
        """4."""
        return 4

    @property
    def nbytes(self) -> int:
        """Bytes that all of them would take, decoded."""
        return self.shape.numel()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.subset(index).decode().to(self.device)

    def subset(self, index: Tensor | slice) -> StoredImages:
        """The images at `index`, not decoded: int64 positions `(n,)`, a boolean mask `(N,)`, or a slice."""
        return replace(self, rows=self.rows[index.cpu() if isinstance(index, Tensor) else index])

    def to(self, device: torch.device | str) -> StoredImages:
        """The same images; what is decoded of them goes to `device`."""
        return replace(self, device=torch.device(device))

    def decode(self, threads: int | None = None) -> Tensor:
        """All of them, uint8, on the CPU.

        Args:
            threads: As for `gambeson.data.images.decode`.

        Raises:
            DataError: A file is damaged, or no longer there; it is named.
        """
        names = [self.names[row] for row in self.rows.tolist()]
        return torch.from_numpy(decode(unlisted(self.where), names, self.size, resize=True, threads=threads))


Images = Tensor | StoredImages
"""The images of a split: in memory, or in their files."""


def in_memory(x: Images) -> Tensor:
    """Images as a tensor, for what goes through all of them again and again.

    Warns:
        GambesonWarning: Stored images take more than `LARGE` bytes.
    """
    if isinstance(x, Tensor):
        return x
    if x.nbytes > LARGE:
        warnings.warn(
            f"{len(x):,} images of {x.where} are decoded into memory at once, {x.nbytes / 1e9:.2f} GB: this goes"
            " through all of them more than once; fewer images take less",
            GambesonWarning,
            stacklevel=2,
        )
    return x[:]
