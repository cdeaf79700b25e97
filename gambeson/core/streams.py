"""Addressed randomness: every draw has a name and a step, so a resumed run needs no generator state.

`Streams.at` seeds a generator for a whole batch. Where every row of a batch has an address and a step of its own,
`Streams.keys` gives each row a key, and `uniform` the numbers of all rows at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor


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

    def keys(self, purpose: str, *address: Tensor) -> Tensor:
        """The seed of every row of a batch, for `uniform`.

        Args:
            purpose: What the numbers are for, such as `"square"`.
            address: What tells the rows apart, such as the example and the round: int64 tensors `(M,)`, at least one.

        Returns:
            int64 `(M,)`, on the device of the address; every device computes the same.
        """
        keys = torch.full_like(address[0], self.number(purpose))
        for part in address:
            keys = _splitmix(keys, part)
        return keys


def uniform(keys: Tensor, step: Tensor, lanes: int) -> Tensor:
    """Random numbers per row that depend on the row's key and step alone, not on the rows beside it.

    Lane l of a row is the top 24 bits of the l-th output of SplitMix64 seeded with the step-th output of SplitMix64
    seeded with the row's key, as a fraction. Nothing is consumed and nothing waits for the device.

    Args:
        keys: From `Streams.keys`, int64 `(M,)`.
        step: Which draw of a row this is, int64 `(M,)`, from 0 on.
        lanes: How many numbers.

    Returns:
        Uniform in [0, 1), float32 `(M, lanes)`, on the device of the keys; the same bits on every device.

    Examples:
        >>> keys = Streams(0).keys("square", torch.arange(3))
        >>> all_rows = uniform(keys, torch.tensor([0, 5, 9]), 4)
        >>> bool((uniform(keys[1:2], torch.tensor([5]), 4) == all_rows[1]).all())
        True

    References:
        Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014,
        https://doi.org/10.1145/2660193.2660195; the constants are those of Vigna's splitmix64.c,
        https://prng.di.unimi.it/splitmix64.c
    Departures:
        None in the sequence. Seeding one sequence with an output of another is the usage here, not the paper's `split`.
    """
    bits = _splitmix(_splitmix(keys, step)[:, None], torch.arange(lanes, device=keys.device))
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


_GAMMA, _FIRST, _SECOND = (
    constant - 2**64 for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)  # as int64, whose arithmetic is that of unsigned numbers modulo 2**64


def _splitmix(seed: Tensor, number: Tensor) -> Tensor:
    """The output of SplitMix64 with this number, from 0 on."""
    z = seed + (number + 1) * _GAMMA
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """A shift to the right that brings in zeros; int64's own brings in the sign."""
    return (bits >> by) & (2 ** (64 - by) - 1)
