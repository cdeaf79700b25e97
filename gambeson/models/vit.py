"""The small vision transformer of LAP, with patches of 4x4 pixels for small images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.types import Task
from gambeson.models.normalize import Normalize


def vit_small(task: Task) -> VisionTransformer:
    """ViT-small with 4x4 patches: 384 dimensions, 12 blocks, 6 heads; 21,342,346 parameters (10 classes, 32x32).

    Args:
        task: The data; `size` must be a multiple of 4.

    Returns:
        The network: position, class token and linear weights from a normal of standard deviation 0.02 truncated at
        +-2, biases zero, patch convolution by PyTorch's default.

    Raises:
        InputError: If the image size is not a multiple of the patch size.

    References:
        Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, https://arxiv.org/abs/2010.11929.
        Lin, Yu, Han, Su, Liu, "Layer-Aware Analysis of Catastrophic Overfitting", ICML 2024,
        https://arxiv.org/abs/2405.16262; code tmllab/2024_ICML_LAP, CIFAR10/vit.py, whose parameter names it keeps.

    Departures:
        No interpolation of the positions: they are built for `task.size`. No dropout and no stochastic depth, which
        the official code sets to 0.
    """
    return VisionTransformer(task, patch=4, dim=384, depth=12, heads=6)


class VisionTransformer(nn.Module):
    """Patch convolution, class token, learnt positions, pre-norm blocks, LayerNorm, linear head on the class token.

    Args:
        task: The data.
        patch: Side of a patch, pixels.
        dim: Size of a token.
        depth: Number of blocks.
        heads: Number of attention heads; divides `dim`.

    Raises:
        InputError: If the image size is not a multiple of `patch`.
    """

    def __init__(self, task: Task, *, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        if task.size % patch:
            raise InputError(
                f"the image size must be a multiple of the transformer's patch of {patch} pixels, got {task.size}",
                hint=f"pad the images to {-(-task.size // patch) * patch} pixels, or choose a convolutional network",
            )
        self.task = task
        self.normalize = Normalize(task)
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(task.channels, dim, patch, stride=patch)))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, (task.size // patch) ** 2 + 1, dim))
        self.blocks = nn.Sequential(*(_Block(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, task.num_classes)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `(N, C, H, W)` in [0, 1] to logits `(N, num_classes)`."""
        tokens = self.patch_embed(self.normalize(x)).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), tokens), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class _Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a LayerNorm and inside a residual connection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        fc1, fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Multi-head self-attention with one linear layer for queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (N, T, 3, heads, dim / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Written out: the fused kernels have no second derivative, which gradient alignment and curvature need.
        weight = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        return self.proj((weight @ v).transpose(1, 2).flatten(2))
