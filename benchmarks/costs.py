"""What one call costs apart from its time: floating-point operations, and memory at its peak."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class Cost(NamedTuple):
    """Of one call.

    Attributes:
        flops: Floating-point operations, see `count_flops`.
        tensors: Bytes of tensors at their peak, beyond what was there before the call.
        arrays: Bytes of Python's and numpy's at their peak, likewise; 0 on a GPU, where only its own memory counts.
    """

    flops: int
    tensors: int
    arrays: int

    @property
    def peak(self) -> int:
        """Both together: the peaks need not coincide, so that this is an upper bound where neither is negligible."""
        return self.tensors + self.arrays


def measure_cost(function: Callable[[], object], device: torch.device | None = None) -> Cost:
    """Two calls, one for the operations and one for the memory; both are slower than a call that is timed."""
    flops = count_flops(function)
    if device is not None and device.type == "cuda":
        return Cost(flops, _device_peak(function, device), 0)
    return Cost(flops, *host_peak(function))


def count_flops(function: Callable[[], object]) -> int:
    """Operations of torch's convolutions, matrix products and attention, forward and backward, two per multiply-add.

    By the formulas of torch's `FlopCounterMode`, and without its account of the modules, which refuses gradients of
    images taken by `torch.autograd.grad`. Nothing else is counted: no elementwise operation, normalisation, pooling,
    sort or random number, and nothing outside torch, so that a loop in numpy has none. Zeros of a padding are
    multiplied like any other value.
    """
    with _Counter() as counter:
        function()
    return counter.flops


def host_peak(function: Callable[[], object]) -> tuple[int, int]:
    """Bytes at the peak of a call on the CPU: of tensors, and of Python with numpy.

    Resident memory would not tell: the allocator of C keeps what was freed, so that a second call grows by nothing.
    Torch's own allocator reports every block that it gives or takes back, temporaries inside an operation included, and
    the sum of the reports in their order is what is held; blocks from before that the call gives back do not count, and
    torch warns of the first of them. Numpy's arrays are known to `tracemalloc`. Neither sees what a library allocates
    by itself (scratch memory of oneDNN, images of pillow).
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it writes two lines to standard error for every call
    collecting, tracing = gc.isenabled(), tracemalloc.is_tracing()
    gc.disable()  # as where it is timed
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profiler:
        if not tracing:
            tracemalloc.start()
        try:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            function()
            arrays = tracemalloc.get_traced_memory()[1] - before
        finally:
            if not tracing:
                tracemalloc.stop()
            if collecting:
                gc.enable()
    assert profiler.kineto_results is not None
    reports = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for report in sorted(reports, key=lambda event: event.start_ns()):
        held += report.nbytes()
        peak = max(peak, held)
    return peak, arrays


def _device_peak(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)  # what is made of others is counted in its parts
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.flops += flop_registry[func._overloadpacket](*args, **kwargs, out_val=out)
        return out
