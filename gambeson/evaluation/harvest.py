"""What an attack of an ensemble brings in: judged by the model in its own precision, counted, and written down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gambeson.attacks.search import Retired, Search
from gambeson.core.errors import RunError
from gambeson.core.parameters import like_of
from gambeson.data.loader import to_unit
from gambeson.evaluation.judging import judge, returned_images
from gambeson.evaluation.ledger import Entry, Ledger, key_of

if TYPE_CHECKING:
    from gambeson.core.threat import Threat

FLUSH_SECONDS = 30.0
"""A kill costs at most that much work, or that of one full batch."""


class Harvest:
    """What one attack brings in: judged, counted and written down in pieces."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, num_classes: int, batch_size: int
    ) -> None:
        self.model, self.x, self.y, self.threat, self.num_classes = model, x, y, threat, num_classes
        self.batch_size = batch_size
        self.done = torch.zeros(len(y), dtype=torch.bool)
        self.fooled = torch.zeros(len(y), dtype=torch.bool)
        self.found: list[tuple[Tensor, Tensor]] = []
        self.spent = (0.0, 0, 0)
        self._waiting: list[Retired] = []
        self._began = time.monotonic()

    def begin(
        self,
        search: Search,
        standing: Tensor,
        book: Ledger | None,
        part: str,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        """Take over what is written down of this attack, once the model has confirmed it."""
        self.attack, self.key, self.book, self.part, self.progress = search.name, key_of(search), book, part, progress
        for entry in book.read(self.key) if book else ():
            fell = entry.fooled
            x_adv, wrong = self._judged(entry.index[fell], entry.x_adv)
            if not bool(wrong.all()):
                raise RunError(
                    f"{int((~wrong).sum())} of the adversarial images that {book.folder} holds of {self.attack}"  # type: ignore[union-attr]
                    " do not fool the model",
                    hint="the state is damaged, or was made on other hardware; choose another folder",
                )
            self._keep(entry.index, fell, x_adv)
            self._pay(entry.seconds, entry.forwards, entry.backwards)
        self.done |= ~standing
        self.fooled &= standing
        self._tell(int((self.done & standing).sum()), int(self.fooled.sum()))
        self._began = time.monotonic()

    def add(self, retired: Retired) -> None:
        """Take in examples that a search is through with."""
        self._waiting.append(retired)
        waiting = sum(len(one.index) for one in self._waiting)
        if waiting >= self.batch_size or time.monotonic() - self._began > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Judge and write down what waits."""
        if not self._waiting:
            return
        index, fell = (torch.cat([getattr(one, name) for one in self._waiting]) for name in ("index", "fooled"))
        x_adv, wrong = self._judged(index[fell], torch.cat([one.x_adv for one in self._waiting]))
        forwards = sum(one.cost.forwards for one in self._waiting) + int(fell.sum())
        backwards = sum(one.cost.backwards for one in self._waiting)
        fell[fell.clone()] = wrong
        x_adv = x_adv[wrong]
        seconds = time.monotonic() - self._began
        if self.book:
            self.book.write(self.key, Entry(index, fell, x_adv, seconds, forwards, backwards), self.part)
        self._keep(index, fell, x_adv)
        self._pay(seconds, forwards, backwards)
        self._waiting, self._began = [], time.monotonic()
        self._tell(len(index), int(fell.sum()))

    def _judged(self, index: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """The images that count, on the CPU, and whether the model gets them wrong."""
        like = like_of(self.model, x_adv)
        images, wrong = [x_adv.new_empty((0, *self.x.shape[1:])).cpu()], [torch.zeros(0, dtype=torch.bool)]
        for start in range(0, len(index), self.batch_size):
            rows = index[start : start + self.batch_size]
            clean = to_unit(self.x[rows].to(like.device)).to(like.dtype)
            candidate = x_adv[start : start + self.batch_size].to(clean)
            candidate, _ = returned_images(candidate, clean, self.threat)
            images.append(candidate.cpu())
            wrong.append(~judge(self.model, candidate, self.y[rows].to(like.device), self.num_classes).cpu())
        return torch.cat(images), torch.cat(wrong)

    def _keep(self, index: Tensor, fell: Tensor, x_adv: Tensor) -> None:
        self.done[index] = True
        self.fooled[index[fell]] = True
        self.found.append((index[fell], x_adv))

    def _pay(self, seconds: float, forwards: int, backwards: int) -> None:
        self.spent = (self.spent[0] + seconds, self.spent[1] + forwards, self.spent[2] + backwards)

    def _tell(self, done: int, fell: int) -> None:
        if self.progress:
            self.progress(self.attack, done, fell)
