"""What the machine can do at best: the rates of single convolutions and matrix products, in the same process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pairs import Clock, measure

MAPS = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Channels and pixels a side of the maps: the four stages of a ResNet-18 on CIFAR."""
SIDES = (512, 1024, 2048)
"""Of the square matrices."""
BATCH, ROUNDS = 32, 5
CUDA_BATCH, CUDA_SIDES = 512, (2048, 4096, 8192)
"""A GPU needs more to do."""


class Rate(NamedTuple):
    """How fast one operation is.

    Attributes:
        operation: `convolution` (3x3, forward, as many channels out as in) or `matmul` (square).
        size: In words.
        layout: Memory format of images and weights; of matrices, `contiguous`.
        dtype: `float32` or `bfloat16`.
        gflops: 10^9 floating-point operations per second by clock, in the fastest round.
    """

    operation: str
    size: str
    layout: str
    dtype: str
    gflops: dict[Clock, float]


def measure_rates(device: torch.device, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> list[Rate]:
    """The rates of all sizes, interleaved; what is counted is what `benchmarks.costs.count_flops` counts.

    The fastest round and not the median: it is the limit that other times are held against. A share above 1 is then
    possible only where the machine was slower all through this measurement.
    """
    chosen: dict[tuple[str, str, str, str], tuple[int, Callable[[], object]]] = {}
    on_cuda = device.type == "cuda"
    batch, sides = (CUDA_BATCH, CUDA_SIDES) if on_cuda else (BATCH, SIDES)
    for dtype in dtypes:
        name = str(dtype).removeprefix("torch.")
        for channels, pixels in MAPS:
            flops = 2 * batch * pixels**2 * 9 * channels**2
            for layout in (torch.contiguous_format, torch.channels_last):
                x, weight = (
                    torch.rand(shape, device=device).to(dtype).contiguous(memory_format=layout)
                    for shape in ((batch, channels, pixels, pixels), (channels, channels, 3, 3))
                )
                size = f"{channels} channels, {pixels}x{pixels}, batch {batch}"
                where = str(layout).removeprefix("torch.").removesuffix("_format")
                chosen["convolution", size, where, name] = (flops, partial(_convolve, x, weight))
        for side in sides:
            a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
            chosen["matmul", f"{side}x{side}", "contiguous", name] = (2 * side**3, partial(torch.matmul, a, b))
    functions = {str(key): function for key, (_, function) in chosen.items()}
    with torch.no_grad():
        samples = measure(functions, ROUNDS, synchronize=torch.cuda.synchronize if on_cuda else None)
    return [
        Rate(*key, {"cpu": _rate(flops, samples.cpu[str(key)]), "wall": _rate(flops, samples.wall[str(key)])})
        for key, (flops, _) in chosen.items()
    ]


def best(rates: Sequence[Rate], clock: Clock, operation: str | None = None, dtype: str = "float32") -> Rate:
    """The fastest of a type, of all operations or of one."""
    fitting = [rate for rate in rates if rate.dtype == dtype and operation in (None, rate.operation)]
    return max(fitting, key=lambda rate: rate.gflops[clock])


def described(rates: Sequence[Rate], clock: Clock) -> str:
    """The best of every operation and type, in a line."""
    kinds = dict.fromkeys((rate.dtype, rate.operation) for rate in rates)
    found = [best(rates, clock, operation, dtype) for dtype, operation in kinds]
    return "; ".join(f"{r.operation} {r.dtype} {r.gflops[clock]:.0f} ({r.size}, {r.layout})" for r in found)


def read_rates(content: dict[str, Any]) -> list[Rate]:
    """The rates of a record."""
    return [Rate(**rate) for rate in content["roofline"]]


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=1)


def _rate(flops: int, seconds: Sequence[float]) -> float:
    return flops / min(seconds) / 1e9
