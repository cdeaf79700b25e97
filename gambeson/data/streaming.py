"""Batches of stored images, decoded ahead by worker processes: torch's DataLoader with our order of the images."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from gambeson.core.errors import DataError
from gambeson.data.stored import Images, StoredImages

PREFETCH = 2
"""Batches that every worker keeps ready."""


class Feed:
    """Batches of stored images by number, decoded before they are asked for where they are asked for in order.

    What a batch holds depends on `rows` alone. A jump, such as the first batch of a resumed run, begins anew there;
    nothing before it is decoded. The global generator is neither read nor moved.

    Args:
        images: The images; `images.workers` processes decode them, which start with the first batch and stay.
        rows: Positions of the images of a batch in `images`, int64 `(n,)` on the CPU, by its number.
        stop: Number of batches; None for no end.
    """

    def __init__(self, images: StoredImages, rows: Callable[[int], Tensor], stop: int | None = None) -> None:
        self.images = images
        self._order = _Order(rows, stop)
        self._source: DataLoader[Tensor | DataError] | None = None
        self._batches: _BaseDataLoaderIter | None = None
        self._next = 0
        self._at_exit = partial(_close, weakref.ref(self))

    def batch(self, number: int) -> Tensor:
        """The images of a batch, uint8 `(n, 3, size, size)`, on the device of the images.

        Raises:
            DataError: A file is damaged or no longer there (it is named), or a worker process has died.
        """
        with closed_on_error(self):
            if self._batches is None or number != self._next:
                self._begin(number)
            assert self._batches is not None
            try:
                found = next(self._batches)
            except (EOFError, OSError) as error:  # it gave its batch and died before the memory was taken over
                raise RuntimeError("DataLoader worker ended while its batch was handed over") from error
            if isinstance(found, DataError):
                raise found
            self._next = number + 1
            return cast("Tensor", found).to(self.images.device, non_blocking=True)

    def close(self) -> None:
        """End the worker processes; another batch would start new ones."""
        batches, self._batches, self._source = self._batches, None, None
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()  # its destructor's work, now, whoever else still holds it (a traceback)
        atexit.unregister(self._at_exit)

    def _begin(self, number: int) -> None:
        workers = self.images.workers
        if self._source is None:
            self._source = DataLoader(
                _Decoder(self.images, threads=1 if workers else None),
                batch_size=None,
                sampler=self._order,
                num_workers=workers,
                prefetch_factor=PREFETCH if workers else None,
                persistent_workers=workers > 0,
                pin_memory=self.images.device.type == "cuda",
                worker_init_fn=_ignore_signals,
                generator=torch.Generator(),  # else it draws a seed for the workers from the global one
            )
        self._order.start = number
        with _held_back():
            self._batches = iter(self._source)
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)  # the last comes first: before those of torch, which wait for workers to end


@contextmanager
def closed_on_error(feed: Feed | None) -> Iterator[None]:
    """Inside the block a worker process that dies is a `DataError`, and workers do not outlive any error.

    Raises:
        DataError: A worker has died; torch says so wherever the process happens to be.
    """
    try:
        yield
    except BaseException as error:
        if feed is not None:
            feed.close()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
            raise DataError(
                f"a process that decodes images has died: {str(error).splitlines()[0].strip()}",
                hint="was there too little memory, or too little in /dev/shm? Fewer --workers need less, and with"
                " --workers 0 the training decodes for itself",
            ) from error
        raise


def chunks(x: Images, size: int, which: slice = slice(None)) -> Iterator[Tensor]:
    """Images in their order, `size` at a time; stored ones are decoded ahead.

    Args:
        x: Images `(N, C, H, W)`.
        size: Images at a time; the last chunk may be smaller.
        which: Of the chunks, such as those of one of several processes.

    Yields:
        Tensors of the type and on the device of `x`.

    Raises:
        DataError: As `Feed.batch`.

    Examples:
        >>> [len(part) for part in chunks(torch.zeros(5, 1, 2, 2), 2)]
        [2, 2, 1]
        >>> [len(part) for part in chunks(torch.zeros(5, 1, 2, 2), 2, slice(0, None, 2))]
        [2, 1]
    """
    if isinstance(x, Tensor):
        yield from x.split(size)[which]
        return
    parts = torch.arange(len(x)).split(size)[which]
    feed = Feed(x, parts.__getitem__, len(parts))
    try:
        for number in range(len(parts)):
            yield feed.batch(number)
    finally:
        feed.close()


class _Order(Sampler[Tensor]):
    """The positions of the batches from `start` on."""

    def __init__(self, rows: Callable[[int], Tensor], stop: int | None) -> None:
        self.rows, self.start, self.stop = rows, 0, stop

    def __iter__(self) -> Iterator[Tensor]:
        number = self.start
        while self.stop is None or number < self.stop:
            yield self.rows(number)
            number += 1


class _Decoder(Dataset["Tensor | DataError"]):
    """Decodes whole batches. An error is returned: raised in a worker it would come back without its hint."""

    def __init__(self, images: StoredImages, threads: int | None) -> None:
        self.images, self.threads = images, threads

    def __getitem__(self, rows: Tensor) -> Tensor | DataError:
        try:
            return self.images.subset(rows).decode(self.threads)
        except DataError as error:
            return error.with_traceback(None)


SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What ends a training, once it has saved its state, and comes to all processes of its group."""


@contextmanager
def _held_back() -> Iterator[None]:
    """Inside the block signals wait; a process that begins there has them waiting until it ignores them."""
    if "pthread_sigmask" not in dir(signal):  # Windows, where no group is signalled
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals(worker: int) -> None:
    """Leave signals to the training, which still needs the batch.

    A worker ends when it is told to, or when it finds that its parent is gone.
    """
    for which in SIGNALS:
        signal.signal(which, signal.SIG_IGN)
    if "pthread_sigmask" in dir(signal):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _close(feed: weakref.ref[Feed]) -> None:
    found = feed()
    if found is not None:
        found.close()
