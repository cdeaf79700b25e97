"""Images and networks to measure with: from a seed, and real images where they lie."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from gambeson.core.layout import preferred_layout
from gambeson.core.streams import Streams
from gambeson.data import load
from gambeson.data.cifar import CIFAR10
from gambeson.data.facts import FACTS
from gambeson.data.files import data_root, find

TASK = FACTS["cifar10"].task


def random_images(count: int, seed: int) -> Tensor:
    """Noise of 256 grey levels, float32 `(count, 3, 32, 32)`."""
    rng = Streams(seed).at("benchmark-images")
    return torch.randint(0, 256, (count, TASK.channels, TASK.size, TASK.size), generator=rng).float() / 255


def random_labels(count: int, seed: int) -> Tensor:
    """Uniform labels, int64 `(count,)`."""
    return torch.randint(0, TASK.num_classes, (count,), generator=Streams(seed).at("benchmark-labels"))


def cifar_images(count: int) -> Tensor | None:
    """The first training images of CIFAR-10, or None where `$GAMBESON_DATA` does not hold it: nothing is downloaded."""
    if not os.environ.get("GAMBESON_DATA"):
        return None
    folders = ["", CIFAR10.name, *(f"{top}{one.folder}" for top in ("", f"{CIFAR10.name}/") for one in CIFAR10.layouts)]
    names = [name for one in CIFAR10.layouts for name in (one.archive.name, one.test[0].name)]
    if find(data_root(None), folders, names) is None:
        return None
    return load("cifar10", val_fraction=0).train.x[:count].float() / 255


def settled(net: nn.Module, x: Tensor, forwards: int = 20) -> nn.Module:
    """The network in evaluation mode, after forwards that move its BatchNorm statistics to those of the images.

    Without them the features of an untrained network hardly depend on the image, and all maps look alike.
    """
    net.train()
    with torch.no_grad():
        for _ in range(forwards):
            net(x)
    return net.eval()


def placed(
    net: nn.Module, x: Tensor, device: torch.device, *, channels_last: bool | None = None
) -> tuple[nn.Module, Tensor]:
    """Network and images on the device, in the layout that gambeson trains in unless another is asked for."""
    layout = preferred_layout(net, device, channels_last)
    return net.to(device, memory_format=layout), x.to(device).contiguous(memory_format=layout)
