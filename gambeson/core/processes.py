"""Several processes that share the work, as `torchrun` starts them: who is who, and what all of them must agree on.

Everything here but `rank_and_world` must be called by all processes, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch

from gambeson.core.errors import ProcessError
from gambeson.core.modes import batch_norms

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """The number of this process and how many there are, where a process group has been initialised; else `(0, 1)`."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def weighted(loss: Tensor, share: float | None) -> Tensor:
    """A process's part of the loss of a step: the mean over its images times its share of them.

    With `n_r` of the step's n images in process r, the parts `(n_r / n) mean_r` add up to the mean over all images, and
    so do their gradients, see `summed`.

    Args:
        loss: The mean over the images of this process.
        share: `n_r / n`; None where one process has all images: the loss stays as it is, to the bit.
    """
    return loss if share is None else loss * share


def summed(tensors: Sequence[Tensor], share: float | None = 1.0) -> list[Tensor]:
    """The sum over the processes, of several tensors in one exchange.

    Args:
        tensors: Of one floating-point type and on one device; of the same shapes in all processes.
        share: None where one process has all images: the tensors are what they are.

    Returns:
        New tensors of the same shapes and memory layouts, or the given ones.

    Raises:
        ProcessError: Another process has ended.
    """
    if share is None or not tensors:
        return list(tensors)
    flat = torch.cat([_dense(t).reshape(-1) for t in tensors])
    with _peers():
        torch.distributed.all_reduce(flat)
    found = []
    for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True):
        new = torch.empty_like(t)
        _dense(new).copy_(part.view(_dense(t).shape))
        found.append(new)
    return found


def sum_gradients(model: nn.Module, share: float | None) -> None:
    """Replace the `.grad` of every parameter that has one by the sum over the processes, see `weighted`."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    grads = summed([cast("Tensor", p.grad) for p in parameters], share)
    for p, grad in zip(parameters, grads, strict=True):
        p.grad = grad


def average_statistics(model: nn.Module, share: float | None) -> None:
    """Replace BatchNorm's running statistics by their weighted mean over the processes; the weight is the share.

    Of the running means this is what one process with all images would have; running variances lack the variance
    between the processes' images, unless these are normalised together (`share_batch_norms`).
    """
    if share is None:
        return
    running = [t for m in batch_norms(model) for t in (m.running_mean, m.running_var) if t is not None and m.training]
    with torch.no_grad():
        for t, mean in zip(running, summed([t * share for t in running]), strict=True):
            t.copy_(mean)


def total(count: Tensor) -> Tensor:
    """The sum over the processes, in every process; the tensor itself where there is only one."""
    if rank_and_world()[1] == 1:
        return count
    found = count.clone()
    with _peers():
        torch.distributed.all_reduce(found)
    return found


def agreed(value: T) -> T:
    """What the first process has; the value itself where there is only one.

    Args:
        value: Anything that can be pickled.
    """
    if rank_and_world()[1] == 1:
        return value
    values: list[Any] = [value]
    with _peers():
        torch.distributed.broadcast_object_list(values)
    return cast("T", values[0])


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes one after the other, `(sum of N_r, ...)`, in every process; on the device of `rows`."""
    if rank_and_world()[1] == 1:
        return rows
    return torch.cat(of_all(rows.cpu())).to(rows.device)


def of_all(value: T) -> list[T]:
    """What every process has, in the order of their ranks.

    Args:
        value: Anything that can be pickled; tensors on the CPU.
    """
    world = rank_and_world()[1]
    if world == 1:
        return [value]
    values: list[Any] = [None] * world
    with _peers():
        torch.distributed.all_gather_object(values, value)
    return values


def max_of(value: int) -> int:
    """The largest of the processes' numbers; an exchange on the CPU, which waits for no device."""
    if rank_and_world()[1] == 1:
        return value
    found = torch.tensor(value)
    with _peers():
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
    return int(found)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    max_of(0)


def shard(count: int, rank: int, world: int) -> slice:
    """The rows of `count` that are the process's: contiguous, and as many as the others' or one more.

    Examples:
        >>> [shard(7, rank, 3) for rank in range(3)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 7, None)]
    """
    return slice(count * rank // world, count * (rank + 1) // world)


def _dense(t: Tensor) -> Tensor:
    """A view whose elements come in the order of memory, so that channels-last tensors are not copied twice."""
    if t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) and not t.is_contiguous():
        return t.permute(0, 2, 3, 1)
    return t


@contextmanager
def _peers() -> Iterator[None]:
    """An exchange: its failure is that of another process, or of the network."""
    try:
        yield
    except RuntimeError as error:
        rank, world = rank_and_world()
        reason = str(error).splitlines()[0].rpartition("] ")[2][:80] if str(error) else type(error).__name__
        raise ProcessError(
            f"process {rank} of {world} lost the others: one of them has ended, or cannot be reached ({reason})",
            hint="its own message says why; a training goes on from its last checkpoint with `gambeson resume RUN`",
        ) from error
