"""A network of four convolutions that learns the 8x8 digits in seconds on one CPU core."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.core.types import Task
from gambeson.models.normalize import Normalize


class SmallCNN(nn.Module):
    """Four times 3x3 convolution, BatchNorm, ReLU (32, 32, 64, 64 channels), global average, linear.

    The second and the fourth convolution halve the map. For examples, tests and first experiments: 8x8 to 32x32
    images, 65,834 parameters for one channel and 10 classes. With a global average before the linear layer, the class
    activation map of `layer4` is exact, as in the ResNets.

    Args:
        task: The data.

    Examples:
        >>> import torch
        >>> task = Task(num_classes=10, channels=1, size=8, mean=(0.3,), std=(0.38,))
        >>> SmallCNN(task)(torch.rand(5, 1, 8, 8)).shape
        torch.Size([5, 10])

    References:
        None: this is the library's own network, and no published number belongs to it.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.normalize = Normalize(task)
        self.layer1 = _Layer(task.channels, 32, 1)
        self.layer2 = _Layer(32, 32, 2)
        self.layer3 = _Layer(32, 64, 1)
        self.layer4 = _Layer(64, 64, 2)
        self.linear = nn.Linear(64, task.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`."""
        out = self.layer4(self.layer3(self.layer2(self.layer1(self.normalize(x)))))
        return self.linear(out.mean((2, 3)))


class _Layer(nn.Module):
    """conv-BN-ReLU."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))
