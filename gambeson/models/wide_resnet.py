"""Wide residual networks, the variant of TRADES, AWP, RiFT and LAP."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.core.types import Task
from gambeson.models.normalize import Normalize


def wrn_28_10(task: Task, *, width: int = 160) -> WideResNet:
    """WideResNet-28-10; 36,479,194 parameters for 10 classes.

    Args:
        task: The data.
        width: Channels of the first stage, 16 times the widen factor; the three stages have `w, 2w, 4w`.

    Returns:
        The network: convolutions Kaiming-normal by fan-out, bias of `fc` zero, the rest by PyTorch's defaults.

    References:
        Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146.

    Departures:
        As `wrn_34_10`.
    """
    return WideResNet(task, depth=28, width=width)


def wrn_34_10(task: Task, *, width: int = 160) -> WideResNet:
    """WideResNet-34-10; 46,160,474 parameters for 10 classes.

    Args:
        task: The data.
        width: Channels of the first stage, 16 times the widen factor; the three stages have `w, 2w, 4w`.

    Returns:
        The network: convolutions Kaiming-normal by fan-out, bias of `fc` zero, the rest by PyTorch's defaults.

    References:
        Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, https://arxiv.org/abs/1605.07146.
        Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan, "Theoretically Principled Trade-off between Robustness and Accuracy",
        ICML 2019, https://arxiv.org/abs/1901.08573; code as in tmllab/2024_ICML_LAP, CIFAR10/wideresnet.py.

    Departures:
        The average is global at every size (official: 8x8 cells, the same at 32x32; RiFT flattens 2x2 cells at
        64x64: that network is `wrn_34_10_tiny`). No `sub_block1`: TRADES, PART and RiFT carry that stage without using
        it; `gambeson.models.foreign.fit_names` drops those names. No dropout, which all the papers set to 0.
    """
    return WideResNet(task, depth=34, width=width)


def wrn_34_10_tiny(task: Task, *, width: int = 160) -> WideResNet:
    """RiFT's WideResNet-34-10 for Tiny-ImageNet: 8x8 cells are averaged and flattened; 46,666,264 parameters at 64x64.

    Args:
        task: The data.
        width: Channels of the first stage, 16 times the widen factor; the three stages have `w, 2w, 4w`.

    Returns:
        The network, initialised as `wrn_34_10`; 16x16 maps (64x64 images) give `4 * 4w` features. The count is
        for 200 classes.

    References:
        Zhu, Hu, Wang, Xie, Yang, "Improving Generalization of Adversarial Training via Robust Critical
        Fine-Tuning", ICCV 2023, https://arxiv.org/abs/2308.02533; code microsoft/robustlearn,
        RiFT/models/wide_resnet.py:103-106.

    Departures:
        Maps of one cell or less (images up to 32x32) are averaged whole, and are then `wrn_34_10` to the bit. No
        `sub_block1`, as there.
    """
    return WideResNet(task, depth=34, width=width, cells=8)


class WideResNet(nn.Module):
    """Stem of 16 channels, three stages of pre-activation blocks, BatchNorm, ReLU, average pooling, linear.

    Args:
        task: The data.
        depth: `6n + 4` for `n` blocks a stage.
        width: Channels of the first stage.
        cells: Side of the square cells that are averaged and flattened, or None to average the whole map.
    """

    def __init__(self, task: Task, *, depth: int, width: int, cells: int | None = None) -> None:
        super().__init__()
        count = (depth - 4) // 6
        side = -(-task.size // 4)  # two strides of 2 with padding 1 round up
        self.task = task
        self.cell = None if cells is None or cells >= side else cells
        self.normalize = Normalize(task)
        self.conv1 = nn.Conv2d(task.channels, 16, 3, padding=1, bias=False)

        def stage(before: int, channels: int, stride: int) -> nn.Sequential:
            rest = (_WideBlock(channels, channels, 1) for _ in range(count - 1))
            layer = nn.Sequential(_WideBlock(before, channels, stride), *rest)
            return nn.Sequential(OrderedDict(layer=layer))  # named as in the checkpoints: block1.layer.0.conv1

        self.block1 = stage(16, width, 1)
        self.block2 = stage(width, 2 * width, 2)
        self.block3 = stage(2 * width, 4 * width, 2)
        self.bn1 = nn.BatchNorm2d(4 * width)
        features = 4 * width * (1 if self.cell is None else (side // self.cell) ** 2)
        self.fc = nn.Linear(features, task.num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`."""
        out = self.block3(self.block2(self.block1(self.conv1(self.normalize(x)))))
        out = F.relu(self.bn1(out))
        return self.fc(out.mean((2, 3)) if self.cell is None else F.avg_pool2d(out, self.cell).flatten(1))


class _WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus a shortcut; where it projects it takes the activated input."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        same = before == channels
        self.convShortcut = None if same else nn.Conv2d(before, channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.convShortcut is None else self.convShortcut(active))
