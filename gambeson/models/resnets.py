"""Residual networks for small images: pre-activation (Fast AT, LAP; two variants) and post-activation (RiFT, PART)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.core.types import Task
from gambeson.models.normalize import Normalize


def preact_resnet18(task: Task, *, width: int = 64) -> PreActResNet:
    """Pre-activation ResNet-18 as the papers use it: the CIFAR variant, or for 64x64 images the Tiny-ImageNet variant.

    The two variants differ in more than the image size, and the published numbers were made with both:

    | variant | input of a projecting shortcut | pooling | parameters |
    |---|---|---|---|
    | CIFAR | the raw block input `x` | global average | 11,172,170 (10 classes, 32x32) |
    | Tiny-ImageNet | the activated `relu(bn1(x))` | 4x4 cells, flattened | 11,576,840 (200 classes, 64x64) |

    Args:
        task: The data. Exactly `task.size == 64` selects the Tiny-ImageNet variant.
        width: Channels of the first stage; the four stages have `w, 2w, 4w, 8w`.

    Returns:
        The network, initialised by PyTorch's defaults.

    References:
        He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, https://arxiv.org/abs/1603.05027.
        Lin, Yu, Han, Su, Liu, "Layer-Aware Analysis of Catastrophic Overfitting", ICML 2024,
        https://arxiv.org/abs/2405.16262; code tmllab/2024_ICML_LAP, CIFAR10/preact_resnet.py and
        Tiny-imagenet/preact_resnet.py.

    Departures:
        In He et al. every projecting shortcut takes the activated input; the papers' CIFAR code takes the raw one
        (CIFAR10/preact_resnet.py:22). At sizes other than 32 the CIFAR variant averages over the whole map instead
        of 4x4 cells, so that it works from 8x8 on.
    """
    if task.size == 64:
        return preact_resnet18_tiny(task, width=width)
    return PreActResNet(task, width=width, activated_shortcut=False, cells=None)


def preact_resnet18_tiny(task: Task, *, width: int = 64) -> PreActResNet:
    """The Tiny-ImageNet variant of `preact_resnet18` at any image size; at 32x32 this is the network of AWP.

    Args:
        task: The data.
        width: Channels of the first stage; the four stages have `w, 2w, 4w, 8w`.

    Returns:
        The network, initialised by PyTorch's defaults; 8x8 maps (64x64 images) give `4 * 8w` features.

    References:
        Lin et al., ICML 2024, https://arxiv.org/abs/2405.16262; Tiny-imagenet/preact_resnet.py:30 (shortcut), :76 and
        :93 (pooling). Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", NeurIPS 2020,
        https://arxiv.org/abs/2004.05884.

    Departures:
        Maps smaller than 4x4 (images below 25x25) are averaged whole; the official code fails there.
    """
    return PreActResNet(task, width=width, activated_shortcut=True, cells=4)


def resnet18(task: Task, *, width: int = 64) -> ResNet:
    """ResNet-18 for small images: 3x3 stem, no max-pooling; 11,173,962 parameters for 10 classes.

    Args:
        task: The data.
        width: Channels of the first stage; the four stages have `w, 2w, 4w, 8w`.

    Returns:
        The network, initialised by PyTorch's defaults.

    References:
        He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016,
        https://arxiv.org/abs/1512.03385; names as in https://github.com/kuangliu/pytorch-cifar.

    Departures:
        At 64x64 RiFT's code flattens 2x2 cells (resnet.py:127,151): that network is `resnet18_tiny`; here the average
        is global at every size.
    """
    return ResNet(task, width=width, blocks=(2, 2, 2, 2))


def resnet18_tiny(task: Task, *, width: int = 64) -> ResNet:
    """RiFT's ResNet-18 for Tiny-ImageNet: 4x4 cells are averaged and flattened; 11,578,632 parameters at 64x64.

    Args:
        task: The data.
        width: Channels of the first stage; the four stages have `w, 2w, 4w, 8w`.

    Returns:
        The network, initialised by PyTorch's defaults; 8x8 maps (64x64 images) give `4 * 8w` features. The count is
        for 200 classes.

    References:
        Zhu, Hu, Wang, Xie, Yang, "Improving Generalization of Adversarial Training via Robust Critical
        Fine-Tuning", ICCV 2023, https://arxiv.org/abs/2308.02533; code microsoft/robustlearn, RiFT/models/resnet.py:127
        (linear layer) and :151 (pooling).

    Departures:
        Maps of one cell or less (images up to 32x32) are averaged whole, and are then `resnet18` to the bit; the
        official code fails below 32x32. No dropout layers, which RiFT builds with probability 0.
    """
    return ResNet(task, width=width, blocks=(2, 2, 2, 2), cells=4)


def resnet34(task: Task, *, width: int = 64) -> ResNet:
    """ResNet-34 for small images; 21,282,122 parameters for 10 classes. Everything else is as in `resnet18`."""
    return ResNet(task, width=width, blocks=(3, 4, 6, 3))


def resnet34_tiny(task: Task, *, width: int = 64) -> ResNet:
    """RiFT's ResNet-34 for Tiny-ImageNet; 21,686,792 parameters at 64x64. Everything else is as in `resnet18_tiny`."""
    return ResNet(task, width=width, blocks=(3, 4, 6, 3), cells=4)


class PreActResNet(nn.Module):
    """Stem, four stages of two pre-activation blocks, BatchNorm, ReLU, average pooling, linear.

    Args:
        task: The data.
        width: Channels of the first stage.
        activated_shortcut: True if projecting shortcuts take `relu(bn1(x))`, False if they take `x`.
        cells: Side of the square cells that are averaged and flattened, or None to average the whole map.
    """

    def __init__(self, task: Task, *, width: int, activated_shortcut: bool, cells: int | None) -> None:
        super().__init__()
        side = -(-task.size // 8)  # three strides of 2 with padding 1 round up
        self.task = task
        self.cell = side if cells is None else min(cells, side)
        self.normalize = Normalize(task)
        self.conv1 = nn.Conv2d(task.channels, width, 3, padding=1, bias=False)

        def stage(before: int, channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                _PreActBlock(before, channels, stride, activated_shortcut),
                _PreActBlock(channels, channels, 1, activated_shortcut),
            )

        self.layer1 = stage(width, width, 1)
        self.layer2 = stage(width, 2 * width, 2)
        self.layer3 = stage(2 * width, 4 * width, 2)
        self.layer4 = stage(4 * width, 8 * width, 2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.linear = nn.Linear(8 * width * (side // self.cell) ** 2, task.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`."""
        out = self.conv1(self.normalize(x))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = F.avg_pool2d(F.relu(self.bn(out)), self.cell)
        return self.linear(out.flatten(1))


class ResNet(nn.Module):
    """Stem with BatchNorm, four stages of basic blocks, average pooling, linear.

    Args:
        task: The data.
        width: Channels of the first stage.
        blocks: Number of blocks of each stage.
        cells: Side of the square cells that are averaged and flattened, or None to average the whole map.
    """

    def __init__(self, task: Task, *, width: int, blocks: tuple[int, int, int, int], cells: int | None = None) -> None:
        super().__init__()
        side = -(-task.size // 8)  # three strides of 2 with padding 1 round up
        self.task = task
        self.cell = None if cells is None or cells >= side else cells
        self.normalize = Normalize(task)
        self.conv1 = nn.Conv2d(task.channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

        def stage(before: int, channels: int, stride: int, count: int) -> nn.Sequential:
            rest = (_BasicBlock(channels, channels, 1) for _ in range(count - 1))
            return nn.Sequential(_BasicBlock(before, channels, stride), *rest)

        self.layer1 = stage(width, width, 1, blocks[0])
        self.layer2 = stage(width, 2 * width, 2, blocks[1])
        self.layer3 = stage(2 * width, 4 * width, 2, blocks[2])
        self.layer4 = stage(4 * width, 8 * width, 2, blocks[3])
        count = 1 if self.cell is None else (side // self.cell) ** 2
        self.linear = nn.Linear(8 * width * count, task.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`."""
        out = F.relu(self.bn1(self.conv1(self.normalize(x))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        return self.linear(out.mean((2, 3)) if self.cell is None else F.avg_pool2d(out, self.cell).flatten(1))


class _PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut, which is an empty `Sequential` where the shapes agree."""

    def __init__(self, before: int, channels: int, stride: int, activated_shortcut: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != channels:
            self.shortcut.append(nn.Conv2d(before, channels, 1, stride=stride, bias=False))
        self.activated_shortcut = activated_shortcut and len(self.shortcut) > 0

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + self.shortcut(active if self.activated_shortcut else x)


class _BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus a shortcut (conv-BN where the shapes differ), then ReLU."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != channels:
            self.shortcut.append(nn.Conv2d(before, channels, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))
