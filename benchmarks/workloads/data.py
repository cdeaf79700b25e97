"""Training batches: crop, mirror and scale of whole batches on the device, against one pillow image at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.case import Bound, Case, Check, Ratio, Setup
from benchmarks.inputs import TASK, random_images
from benchmarks.references import data as reference
from gambeson.core.streams import Streams
from gambeson.core.types import Batch
from gambeson.data.loader import Loader
from gambeson.data.splits import Examples

BATCHES, PAD = 8, 4
OURS, LOOP = "gambeson", "one by one (reference)"
EQUAL, MOVED = Bound(">=", 1), Bound(">=", 0.25)


def cases(setup: Setup) -> Iterator[Case]:
    """An epoch of a few batches of CIFAR-sized images, with crop and mirror as in training, and without."""
    yield _case("random crop of padding 4 and mirror", setup, PAD)
    yield _case("as they are", setup, 0)


def _case(what: str, setup: Setup, pad: int) -> Case:
    count = BATCHES * setup.batch_size
    x = (random_images(count, setup.seed) * 255).round().to(torch.uint8)
    y = torch.randint(0, TASK.num_classes, (count,), generator=Streams(setup.seed).at("benchmark-labels"))
    pictures, labels = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy()), y.numpy()
    loader = Loader(Examples(x, y), setup.batch_size, Streams(setup.seed), pad=pad, flip=bool(pad), device=setup.device)
    epochs = iter(range(1_000_000))

    def ours() -> list[Batch]:
        first = BATCHES * next(epochs)  # a new epoch at every call: a permutation and draws of its own
        return [loader.batch(step) for step in range(first, first + BATCHES)]

    def loop() -> list[tuple[Tensor, Tensor]]:
        batches = []
        for index in torch.randperm(count).split(setup.batch_size):
            images, targets = reference.batch(pictures, labels, index.tolist(), pad)
            batches.append((images.to(setup.device), targets.to(setup.device)))
        return batches

    def guard() -> list[Check]:
        equal, moved, seen = [], [], 0
        for batch in ours():
            index, placements = batch.index.tolist(), None
            if batch.placement is not None:
                placements = [(dy + pad, dx + pad, bool(flip)) for dy, dx, flip in batch.placement.tolist()]
            images, targets = reference.batch(pictures, labels, index, pad, placements)
            equal += [torch.equal(a, b) for a, b in zip(batch.x.cpu(), images, strict=True)]
            assert torch.equal(batch.y.cpu(), targets)
            moved.append((images - x[index].float() / 255).ne(0).float().mean())
            seen += len(set(index))
        checks = [
            Check("share of images equal to the reference's, for the same draws", sum(equal) / len(equal), EQUAL),
            Check("share of the split in an epoch", seen / count, EQUAL),
        ]
        if pad:
            checks.append(
                Check("share of values that differ from the image's", float(torch.stack(moved).mean()), MOVED)
            )
        return checks

    title = f"data: {what}, {BATCHES} batches of {setup.batch_size} random images of 32x32"
    return Case(title, {OURS: ours, LOOP: loop}, None, guard, (Ratio("reference / ours", LOOP, OURS),), images=count)
