"""The values before a cut, kept for all images and advanced from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gambeson.diagnosis.suffix import Cut, Graph

Frontiers = Callable[[Tensor | slice], list[Tensor]]
"""Maps positions in the set of images to the frontier's values of these images; of a slice nothing is copied."""


class PrefixCache:
    """The frontier's values of all images, advanced from layer to layer; what no later layer starts from is dropped.

    Args:
        graph: The model.
        x: All images `(N, C, H, W)`.
        cuts: The cuts that will be asked for, in that order.
        batch_size: Images per forward.
        memory: Bytes that the values may take. A frontier that does not fit is not kept: that layer's passes start
            from the images.
    """

    def __init__(self, graph: Graph, x: Tensor, cuts: Sequence[Cut], batch_size: int, memory: int) -> None:
        self.graph, self.x, self.batch_size, self.memory = graph, x, batch_size, memory
        self.waiting = list(cuts)
        self.values: dict[str, Tensor] = {}
        self.largest = 0

    def advance(self, cut: Cut) -> tuple[Cut, Frontiers]:
        """Make the values for the next cut.

        Returns:
            The cut, or one before everything where its values do not fit, and where its inputs come from.
        """
        self.waiting = [other for other in self.waiting if other.layers != cut.layers]
        if not cut.frontier or cut.frontier == (self.graph.images,):
            return cut, lambda index: [_rows(self.x, index)]
        self._drop(set(cut.frontier) | {name for other in self.waiting for name in other.frontier})
        missing = [name for name in cut.frontier if name not in self.values and name != self.graph.images]
        if missing and not self._make(missing):
            return Cut(cut.layers, (), self.graph.model), lambda index: [_rows(self.x, index)]
        self.largest = max(self.largest, self._bytes())
        tensors = [self.x if name == self.graph.images else self.values[name] for name in cut.frontier]
        return cut, lambda index: [_rows(t, index) for t in tensors]

    def _make(self, missing: Sequence[str]) -> bool:
        """Compute the missing values from those at hand; False, and nothing kept, where they do not fit."""
        start, module = self.graph.between(self.values, missing)
        sources = [self.x if name == self.graph.images else self.values[name] for name in start]
        made: list[Tensor] = []
        with torch.no_grad():
            for begin in range(0, len(self.x), self.batch_size):
                part = slice(begin, begin + self.batch_size)
                outputs = module(*[t[part] for t in sources])
                if not made:
                    row = sum(t[:1].numel() * t.element_size() for t in outputs)
                    if self._bytes() + row * len(self.x) > self.memory:
                        return False
                    made = [_empty(len(self.x), t) for t in outputs]
                for whole, piece in zip(made, outputs, strict=True):
                    whole[part] = piece
        self.values |= dict(zip(missing, made, strict=True))
        return True

    def _drop(self, kept: set[str]) -> None:
        self.values = {name: t for name, t in self.values.items() if name in kept}

    def _bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.values.values())


def _empty(count: int, like: Tensor) -> Tensor:
    """Room for `count` rows in the memory layout of `like`."""
    whole = like.new_empty((count, *like.shape[1:]))
    return whole.contiguous(memory_format=_layout(like))


def _rows(t: Tensor, index: Tensor | slice) -> Tensor:
    """The rows at `index`, in the layout of `t`."""
    return t[index].contiguous(memory_format=_layout(t))


def _layout(t: Tensor) -> torch.memory_format:
    last = t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
