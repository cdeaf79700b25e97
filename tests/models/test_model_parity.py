"""Every network against its forward pass written once more: plain functions of a state dict, no module in sight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gambeson.core.types import Task
from gambeson.models import create
from gambeson.models.resnets import PreActResNet
from gambeson.models.vit import VisionTransformer
from gambeson.models.wide_resnet import WideResNet

State = dict[str, Tensor]
CIFAR = Task(num_classes=10, channels=3, size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
ODD = Task(num_classes=10, channels=1, size=28, mean=(0.1307,), std=(0.3081,))  # strides of 2 round up to a 4x4 map
TINY = Task(num_classes=20, channels=3, size=64, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def scramble(model: nn.Module) -> nn.Module:
    """The model in float64 and eval mode with BatchNorm statistics, scales and biases that are not 0 and 1."""
    rng = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5, generator=rng)
        elif tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape, generator=rng), alpha=0.3)
    return model.double().eval()


def bn(state: State, name: str, x: Tensor) -> Tensor:
    keys = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (state[f"{name}.{key}"].view(-1, 1, 1) for key in keys)
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def plain_preact_resnet18(state: State, x: Tensor, *, activated_shortcut: bool) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            p = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            h = F.relu(bn(state, f"{p}.bn1", x))
            shortcut = x
            if stride == 2:
                source = h if activated_shortcut else x
                shortcut = F.conv2d(source, state[f"{p}.shortcut.0.weight"], stride=2)
            h = F.conv2d(h, state[f"{p}.conv1.weight"], stride=stride, padding=1)
            h = F.conv2d(F.relu(bn(state, f"{p}.bn2", h)), state[f"{p}.conv2.weight"], padding=1)
            x = h + shortcut
    x = F.avg_pool2d(F.relu(bn(state, "bn", x)), 4).flatten(1)
    return x @ state["linear.weight"].T + state["linear.bias"]


def plain_resnet(state: State, x: Tensor, *, blocks: tuple[int, ...]) -> Tensor:
    x = F.relu(bn(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)))
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            p = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            shortcut = x
            if stride == 2:
                shortcut = bn(state, f"{p}.shortcut.1", F.conv2d(x, state[f"{p}.shortcut.0.weight"], stride=2))
            h = F.relu(bn(state, f"{p}.bn1", F.conv2d(x, state[f"{p}.conv1.weight"], stride=stride, padding=1)))
            h = bn(state, f"{p}.bn2", F.conv2d(h, state[f"{p}.conv2.weight"], padding=1))
            x = F.relu(h + shortcut)
    x = F.avg_pool2d(x, 4).flatten(1)
    return x @ state["linear.weight"].T + state["linear.bias"]


def plain_wide_resnet(state: State, x: Tensor, *, blocks: int) -> Tensor:
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for block in range(blocks):
            p = f"block{stage}.layer.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            h = F.relu(bn(state, f"{p}.bn1", x))
            if f"{p}.convShortcut.weight" in state:
                x = F.conv2d(h, state[f"{p}.convShortcut.weight"], stride=stride)
            h = F.conv2d(h, state[f"{p}.conv1.weight"], stride=stride, padding=1)
            x = x + F.conv2d(F.relu(bn(state, f"{p}.bn2", h)), state[f"{p}.conv2.weight"], padding=1)
    x = F.avg_pool2d(F.relu(bn(state, "bn1", x)), 8).flatten(1)
    return x @ state["fc.weight"].T + state["fc.bias"]


def plain_vit(state: State, x: Tensor, *, depth: int, heads: int) -> Tensor:
    def linear(name: str, h: Tensor) -> Tensor:
        return h @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(name: str, h: Tensor) -> Tensor:
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
        return h * state[f"{name}.weight"] + state[f"{name}.bias"]

    kernel = state["patch_embed.proj.weight"]
    patches = F.unfold(x, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
    x = patches @ kernel.flatten(1).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].repeat(len(x), 1, 1), x], 1) + state["pos_embed"]
    for block in range(depth):
        p = f"blocks.{block}"
        h = norm(f"{p}.norm1", x).transpose(0, 1)  # the library's own attention, as an independent path
        h, _ = F.multi_head_attention_forward(
            *(h, h, h, h.shape[-1], heads),
            *(state[f"{p}.attn.qkv.weight"], state[f"{p}.attn.qkv.bias"], None, None, False, 0.0),
            *(state[f"{p}.attn.proj.weight"], state[f"{p}.attn.proj.bias"]),
            training=False,
        )
        x = x + h.transpose(0, 1)
        h = linear(f"{p}.mlp.fc1", norm(f"{p}.norm2", x))
        x = x + linear(f"{p}.mlp.fc2", 0.5 * h * (1 + torch.erf(h / 2**0.5)))
    return linear("head", norm("norm", x)[:, 0])


def images(task: Task) -> Tensor:
    rng = torch.Generator().manual_seed(3)
    return torch.rand(3, task.channels, task.size, task.size, generator=rng, dtype=torch.float64)


def normalized(task: Task) -> Tensor:
    x = images(task)
    for channel in range(task.channels):
        x[:, channel] -= torch.tensor(task.mean[channel])  # the constants are float32 in the model
        x[:, channel] /= torch.tensor(task.std[channel])
    return x


def gap(model: nn.Module, task: Task, forward: Callable[[State, Tensor], Tensor]) -> float:
    """Largest difference of the logits, relative to the largest logit."""
    scramble(model)
    with torch.no_grad():
        logits, expected = model(images(task)), forward(model.state_dict(), normalized(task))
    assert logits.shape == expected.shape == (3, task.num_classes)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ("task", "activated"), [(CIFAR, False), (ODD, False), (TINY, True)], ids=["cifar", "28x28", "tiny"]
)
def test_preact_resnet18(task: Task, activated: bool) -> None:
    model = create("preact-resnet18", task, width=8, seed=0)
    assert gap(model, task, lambda s, x: plain_preact_resnet18(s, x, activated_shortcut=activated)) < 1e-12
    # and the comparison can tell the two shortcuts apart
    assert gap(model, task, lambda s, x: plain_preact_resnet18(s, x, activated_shortcut=not activated)) > 1e-2


def test_preact_resnet18_tiny_by_name_keeps_the_activated_shortcut_at_32() -> None:
    model = create("preact-resnet18-tiny", CIFAR, width=8, seed=0)
    assert gap(model, CIFAR, lambda s, x: plain_preact_resnet18(s, x, activated_shortcut=True)) < 1e-12


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", (2, 2, 2, 2)), ("resnet34", (3, 4, 6, 3))])
def test_resnet(name: str, blocks: tuple[int, ...]) -> None:
    model = create(name, CIFAR, width=8, seed=0)
    assert gap(model, CIFAR, lambda s, x: plain_resnet(s, x, blocks=blocks)) < 1e-12


@pytest.mark.parametrize(("name", "blocks"), [("resnet18-tiny", (2, 2, 2, 2)), ("resnet34-tiny", (3, 4, 6, 3))])
def test_resnet_tiny(name: str, blocks: tuple[int, ...]) -> None:
    """The plain forward pass has the release's pooling: 4x4 cells, at 64x64 four of them."""
    model = create(name, TINY, width=8, seed=0)
    assert model.get_parameter("linear.weight").shape == (20, 4 * 64)
    assert gap(model, TINY, lambda s, x: plain_resnet(s, x, blocks=blocks)) < 1e-12


def test_wide_resnet_tiny() -> None:
    torch.manual_seed(0)
    model = WideResNet(TINY, depth=10, width=16, cells=8)
    assert model.fc.in_features == 4 * 64
    assert gap(model, TINY, lambda s, x: plain_wide_resnet(s, x, blocks=1)) < 1e-12


@pytest.mark.parametrize(("depth", "width"), [(10, 16), (16, 24)], ids=["wrn-10-1", "wrn-16, first stage projects"])
def test_wide_resnet(depth: int, width: int) -> None:
    torch.manual_seed(0)
    model = WideResNet(CIFAR, depth=depth, width=width)
    assert gap(model, CIFAR, lambda s, x: plain_wide_resnet(s, x, blocks=(depth - 4) // 6)) < 1e-12


def test_small_cnn() -> None:
    def plain(state: State, x: Tensor) -> Tensor:
        for layer, stride in enumerate((1, 2, 1, 2), start=1):
            x = F.conv2d(x, state[f"layer{layer}.conv.weight"], stride=stride, padding=1)
            x = F.relu(bn(state, f"layer{layer}.bn", x))
        return F.avg_pool2d(x, 8).flatten(1) @ state["linear.weight"].T + state["linear.bias"]

    assert gap(create("small-cnn", CIFAR, seed=0), CIFAR, plain) < 1e-12


def test_vit() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(CIFAR, patch=4, dim=24, depth=2, heads=3)
    for parameter in model.parameters():  # at 0.02 the softmax would be flat and a wrong scale invisible
        nn.init.normal_(parameter, std=0.3)
    assert gap(model, CIFAR, lambda s, x: plain_vit(s, x, depth=2, heads=3)) < 1e-12


def test_pooling_of_the_tiny_variant_follows_the_map() -> None:
    def features(size: int) -> int:
        task = Task(num_classes=2, channels=1, size=size, mean=(0.5,), std=(0.5,))
        model = PreActResNet(task, width=1, activated_shortcut=True, cells=4).eval()
        assert model(torch.rand(1, 1, size, size)).shape == (1, 2)
        return model.linear.in_features

    assert [features(size) for size in (8, 20, 28, 32, 41, 60, 64, 96)] == [8, 8, 8, 8, 8, 32, 32, 72]


def test_double_backward_through_attention() -> None:
    model = VisionTransformer(CIFAR, patch=8, dim=12, depth=1, heads=2)
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    (grad,) = torch.autograd.grad(model(x).logsumexp(1).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), x)
    assert second.abs().max() > 0
