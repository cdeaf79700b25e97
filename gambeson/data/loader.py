"""Batches by step number: the split lies on the device, or in its files; shuffling and augmentation are addressed, not
consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from gambeson.core.errors import InputError, require_known
from gambeson.core.processes import shard
from gambeson.core.streams import Streams
from gambeson.core.types import Batch
from gambeson.data.placement import draw_placement, place
from gambeson.data.splits import Examples
from gambeson.data.stored import StoredImages
from gambeson.data.streaming import Feed, chunks, closed_on_error


class Loader:
    """Training batches of one split.

    `batch(step)` depends on the seed and the step alone, so that a resumed run sees what the interrupted one would have
    seen. Every epoch is a fresh permutation; the last batch of an epoch may be smaller, as in the papers' releases.
    Several processes take contiguous shares of the batch that one would have, with the same crops and flips.

    Args:
        examples: The split; it is moved to `device` once, as uint8. Stored images are decoded batch by batch, ahead
            by their worker processes; the batches are the same to the bit.
        batch_size: Images per batch, at most the size of the split.
        streams: Source of permutations and augmentations.
        pad: Padding of the random crop, pixels; 0 for no crop.
        flip: Mirror every image with probability 1/2.
        fill: What the padding shows: `"zero"` (black) or `"reflect"`.
        device: Where the batches lie.
        layout: Memory format of the images.
        rank: Which process this is.
        world: How many processes share every batch.

    Raises:
        InputError: The batch is larger than the split, the padding does not fit the images, or a batch has fewer images
            than there are processes.
    """

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        streams: Streams,
        *,
        pad: int = 0,
        flip: bool = False,
        fill: Literal["zero", "reflect"] = "zero",
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.contiguous_format,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 1 <= batch_size <= len(examples):
            raise InputError(
                f"the batch size must be between 1 and the {len(examples)} training images, got {batch_size}",
                hint=f"use --batch-size {min(128, len(examples))} or less",
            )
        require_known("fill", fill, ("zero", "reflect"))
        size = min(examples.x.shape[-2:])
        if pad < 0 or (fill == "reflect" and pad >= size):
            raise InputError(f"a crop padding of {pad} pixels does not fit images of {size} pixels")
        smallest = (len(examples) - 1) % batch_size + 1  # of an epoch's batches, the last
        if min(batch_size, smallest) < world:
            raise InputError(
                f"{world} processes cannot share a batch of {min(batch_size, smallest)} images: the last of an epoch,"
                f" with {len(examples)} training images in batches of {batch_size}",
                hint="use another --batch-size or fewer processes",
            )
        self.rank, self.world = rank, world
        self.examples = examples.to(device)
        self.batch_size, self.streams, self.layout = batch_size, streams, layout
        self.pad, self.flip, self.fill = pad, flip, fill
        stored = isinstance(self.examples.x, StoredImages)
        self._home = torch.device("cpu") if stored else self.examples.x.device  # where positions are drawn up
        self._orders: dict[int, Tensor] = {}  # by epoch: of the last two, since batches are decoded ahead
        self._feed = Feed(self.examples.x, self.rows) if isinstance(self.examples.x, StoredImages) else None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch, the smaller last one included."""
        return -(-len(self.examples) // self.batch_size)

    def rows(self, step: int) -> Tensor:
        """Positions in the split of this process's images of `step`, int64 `(n,)`; of stored images on the CPU."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:  # drawn on the CPU: the same order on every device
            order = torch.randperm(len(self.examples), generator=self.streams.at("shuffle", epoch))
            kept = list(self._orders.items())[-1:]
            self._orders = {**dict(kept), epoch: order.to(self._home)}
        whole = self._orders[epoch][position * self.batch_size : (position + 1) * self.batch_size]
        return whole[shard(len(whole), self.rank, self.world)]

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted from 0 over all epochs."""
        index, whole = self.rows(step), self._size(step)
        x = self.examples.x[index] if self._feed is None else self._feed.batch(step)
        x, placement = self._placed(x, self.streams.at("augment", step), (whole, shard(whole, self.rank, self.world)))
        index = index.to(self.examples.x.device)
        share = None if self.world == 1 else len(index) / whole
        return Batch(x, self.examples.y[index], index, placement, share)

    def view(self, index: Tensor, rng: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """The images at `index`, float in [0, 1], augmented where `rng` is given, and how they were placed."""
        return self._placed(self.examples.x[index], rng)

    def walk(self, rng: Callable[[int], torch.Generator] | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """All images of the split in its order, a batch at a time, each as `view` gives it; of several processes every
        one walks over as many batches as the others, or one more, in the order of their ranks.

        Args:
            rng: Source of the augmentation by the number of the batch, from 0; None for the images as they are.
        """
        mine = shard(self.steps_per_epoch, self.rank, self.world)
        for number, x in enumerate(chunks(self.examples.x, self.batch_size, mine), start=mine.start):
            yield self._placed(x, rng and rng(number))

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Inside the block batches are asked for; afterwards, however it ends, no process that decodes them is left."""
        with closed_on_error(self._feed):
            yield
        if self._feed is not None:
            self._feed.close()

    def _size(self, step: int) -> int:
        """Images of the batch of `step`, of all processes."""
        return min(self.batch_size, len(self.examples) - step % self.steps_per_epoch * self.batch_size)

    def _placed(
        self, x: Tensor, rng: torch.Generator | None, of: tuple[int, slice] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Placed and brought to the unit interval; `of` says of how many images these are which, for the draws."""
        placement = None
        if rng is not None and (self.pad or self.flip):
            count, mine = of or (len(x), slice(None))
            placement = draw_placement(count, rng, pad=self.pad, flip=self.flip)[mine].to(x.device)
            x = place(x, placement, self.fill)
        return to_unit(x).contiguous(memory_format=self.layout), placement


def to_unit(x: Tensor) -> Tensor:
    """Images as float32 in [0, 1]: uint8 is divided by 255, floats are passed on."""
    return x.to(torch.float32).div(255) if x.dtype == torch.uint8 else x


def augment(
    x: Tensor, rng: torch.Generator, *, pad: int, flip: bool, fill: Literal["zero", "reflect"] = "zero"
) -> Tensor:
    """Random crop after padding and random mirroring, drawn per image, computed for the whole batch.

    Args:
        x: Images, uint8 or float, shape `(N, C, H, W)`.
        rng: CPU generator: the same draws on every device.
        pad: Padding on each side, pixels; the crop has the old size. 0 for no crop.
        flip: Mirror with probability 1/2.
        fill: `"zero"` or `"reflect"`.

    Returns:
        Float images in [0, 1], the shape of `x`.
    """
    return to_unit(place(x, draw_placement(len(x), rng, pad=pad, flip=flip), fill))
