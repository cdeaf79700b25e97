"""Addressed randomness: every draw has a name and a step, so a resumed run needs no generator state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Generator


@dataclass(frozen=True)
class Streams:
    """Independent random streams, addressed by purpose and step.

    The generator of an address is seeded with the first 63 bits of BLAKE2b over `seed/rank/purpose/step`. Asking twice
    gives the same numbers; nothing is consumed.

    Args:
        seed: The run's seed, any integer.
        rank: The process in a distributed run; ranks draw different numbers.

    Examples:
        >>> a, b = Streams(0).at("attack", 7), Streams(0).at("attack", 7)
        >>> bool((torch.rand(3, generator=a) == torch.rand(3, generator=b)).all())
        True
    """

    seed: int
    rank: int = 0

    def number(self, purpose: str, step: int = 0) -> int:
        """The seed behind an address, in `[0, 2**63)`."""
        digest = hashlib.blake2b(f"{self.seed}/{self.rank}/{purpose}/{step}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 1

    def at(self, purpose: str, step: int = 0, device: torch.device | str = "cpu") -> Generator:
        """A fresh generator on `device` for `purpose` (such as `"augment"`) at `step`."""
        return torch.Generator(device).manual_seed(self.number(purpose, step))
