"""The table and `create`: counts, layer order, shapes, options, seeds, normalisation, errors."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gambeson.models
from gambeson.core.errors import InputError
from gambeson.core.types import Task
from gambeson.models import MODELS, create

DIGITS = Task(num_classes=10, channels=1, size=8, mean=(0.3053,), std=(0.376,))


def task(num_classes: int = 10, channels: int = 3, size: int = 32) -> Task:
    means, stds = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    return Task(num_classes=num_classes, channels=channels, size=size, mean=means[:channels], std=stds[:channels])


def cheap(name: str) -> int | None:
    """A width that keeps the tests fast."""
    return None if MODELS[name].width is None else 4


COUNTS = {
    ("preact-resnet18", 10, 32): 11_172_170,
    ("preact-resnet18", 100, 32): 11_218_340,
    ("preact-resnet18", 200, 64): 11_576_840,
    ("preact-resnet18-tiny", 200, 64): 11_576_840,
    ("preact-resnet18-tiny", 10, 32): 11_172_170,
    ("resnet18", 10, 32): 11_173_962,
    ("resnet18-tiny", 200, 64): 11_578_632,
    ("resnet18-tiny", 10, 32): 11_173_962,
    ("resnet34", 10, 32): 21_282_122,
    ("resnet34-tiny", 200, 64): 21_686_792,
    ("small-cnn", 10, 32): 66_410,
    ("vit-small", 10, 32): 21_342_346,
    ("wrn-28-10", 10, 32): 36_479_194,
    ("wrn-34-10", 10, 32): 46_160_474,
    ("wrn-34-10-tiny", 200, 64): 46_666_264,
}


def test_every_network_has_a_count() -> None:
    assert {name for name, _, _ in COUNTS} == set(MODELS)
    assert list(MODELS) == sorted(MODELS)


@pytest.mark.parametrize(("name", "num_classes", "size"), COUNTS)
def test_parameter_count(name: str, num_classes: int, size: int) -> None:
    with torch.device("meta"):
        model = create(name, task(num_classes, size=size))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name, num_classes, size]


def preact_layers() -> list[str]:
    layers = ["conv1"]
    for stage in (1, 2, 3, 4):
        layers += [f"layer{stage}.0.conv1", f"layer{stage}.0.conv2"]
        layers += [f"layer{stage}.0.shortcut.0"] if stage > 1 else []
        layers += [f"layer{stage}.1.conv1", f"layer{stage}.1.conv2"]
    return [*layers, "linear"]


def wrn_layers() -> list[str]:
    layers = ["conv1"]
    for stage in (1, 2, 3):
        layers += [f"block{stage}.layer.0.{conv}" for conv in ("conv1", "conv2", "convShortcut")]
        layers += [f"block{stage}.layer.{unit}.{conv}" for unit in (1, 2, 3, 4) for conv in ("conv1", "conv2")]
    return [*layers, "fc"]


def vit_layers() -> list[str]:
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    return ["patch_embed.proj", *(f"blocks.{block}.{part}" for block in range(12) for part in parts), "head"]


@pytest.mark.parametrize(
    ("name", "layers", "count"),
    [
        ("preact-resnet18", preact_layers(), 21),
        ("preact-resnet18-tiny", preact_layers(), 21),
        ("resnet18", preact_layers(), 21),
        ("wrn-34-10", wrn_layers(), 35),
        ("vit-small", vit_layers(), 50),
        ("small-cnn", [*(f"layer{i}.conv" for i in (1, 2, 3, 4)), "linear"], 5),
    ],
)
def test_order_of_the_weights_is_the_layer_table(name: str, layers: list[str], count: int) -> None:
    with torch.device("meta"):
        model = create(name, task())
    weights = [n for n, p in model.named_parameters() if p.ndim >= 2 and "weight" in n]
    assert weights == [f"{layer}.weight" for layer in layers]
    assert len(weights) == count


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64)])
def test_shapes_and_one_image(name: str, channels: int, size: int) -> None:
    problem = task(7, channels, size)
    model = create(name, problem, width=cheap(name), seed=0).eval()
    x = torch.rand(2, channels, size, size)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-4, atol=1e-5)
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert model.task is problem


@pytest.mark.parametrize("name", MODELS)
def test_normalises_inside(name: str) -> None:
    model = create(name, task(), width=cheap(name), seed=0).eval()
    same = create(name, Task(num_classes=10, channels=3, size=32, mean=(0.0,) * 3, std=(1.0,) * 3), width=cheap(name))
    same.load_state_dict(model.state_dict())  # strict: no constants of the data in the state dict
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(x[:, 0] - 0.5) / 0.25, (x[:, 1] - 0.4) / 0.2, (x[:, 2] - 0.3) / 0.3], dim=1)
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(logits, same.eval()(by_hand), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(logits, same(x), rtol=1e-2, atol=1e-3)
    assert next(iter(dict(model.named_children()))) == "normalize"


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_pixel_and_every_weight(name: str) -> None:
    model = create(name, task(), width=cheap(name), seed=0)
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    F.cross_entropy(model(x), torch.arange(4)).backward()
    assert (x.grad != 0).float().mean() > 0.99
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, second, other = (create("resnet18", task(), width=4, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_without_a_seed_the_global_generator_is_used() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = create("wrn-28-10", task(), width=16).state_dict()
        again = create("wrn-28-10", task(), width=16).state_dict()
    assert torch.equal(
        state["conv1.weight"], create("wrn-28-10", task(), width=16, seed=5).state_dict()["conv1.weight"]
    )
    assert not torch.equal(state["conv1.weight"], again["conv1.weight"])


def test_initial_weights() -> None:
    wide = create("wrn-34-10", task(), width=16, seed=0).state_dict()
    fan_out = 64 * 9  # and a fan-in of half of that
    assert wide["block3.layer.0.conv1.weight"].std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.02)
    assert not wide["fc.bias"].any()
    vit = create("vit-small", task(), seed=0).state_dict()
    for name in ("blocks.3.attn.qkv.weight", "blocks.11.mlp.fc2.weight", "pos_embed", "cls_token", "head.weight"):
        assert vit[name].std().item() == pytest.approx(0.02, rel=0.15), name
    assert not vit["blocks.0.mlp.fc1.bias"].any()
    assert vit["patch_embed.proj.weight"].abs().max() <= 1 / math.sqrt(3 * 4 * 4)  # PyTorch's uniform default
    preact = create("preact-resnet18", task(), width=8, seed=0).state_dict()
    bound = 1 / math.sqrt(64 * 9)
    assert 0.99 * bound < preact["layer4.1.conv2.weight"].abs().max() <= bound


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry.width is not None])
def test_width(name: str) -> None:
    with torch.device("meta"):
        default, same = (create(name, task(), width=width) for width in (None, MODELS[name].width))
    assert [p.shape for p in default.parameters()] == [p.shape for p in same.parameters()]
    first, last = ("block1", "block3") if name.startswith("wrn") else ("layer1", "layer4")
    model = create(name, task(), width=6)
    shapes: dict[str, torch.Size] = {}
    for stage in (first, last):
        model.get_submodule(stage).register_forward_hook(
            lambda _m, _i, out, stage=stage: shapes.update({stage: out.shape})
        )
    model(torch.rand(2, 3, 32, 32))
    assert shapes == {first: (2, 6, 32, 32), last: (2, 24, 8, 8) if name.startswith("wrn") else (2, 48, 4, 4)}


def test_underscores_and_the_tiny_variant() -> None:
    def keys(name: str, size: int) -> Tensor:
        return create(name, task(size=size), width=4, seed=0)(
            torch.linspace(0, 1, 2 * 3 * size**2).view(2, 3, size, size)
        )

    assert torch.equal(keys("preact_resnet18", 32), keys("preact-resnet18", 32))
    assert torch.equal(keys("preact_resnet18", 64), keys("preact-resnet18-tiny", 64))
    assert torch.equal(keys("wrn_28_10", 32), keys("wrn-28-10", 32))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "wrn-34-10"])
def test_the_tiny_variants_are_the_same_network_while_the_map_is_one_cell(name: str) -> None:
    for size in (8, 28, 32):
        one, tiny = (create(which, task(size=size), width=4, seed=0).eval() for which in (name, f"{name}-tiny"))
        assert list(one.state_dict()) == list(tiny.state_dict())
        x = torch.rand(2, 3, size, size)
        with torch.no_grad():
            assert torch.equal(one(x), tiny(x))
    one, tiny = (create(which, task(size=64), width=4, seed=0) for which in (name, f"{name}-tiny"))
    different = [n for n, t in one.state_dict().items() if t.shape != tiny.state_dict()[n].shape]
    assert different == ["fc.weight" if name.startswith("wrn") else "linear.weight"]


def test_small_cnn_learns_the_digits() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, held_out = order[:1330], order[1330:]
    model = create("small-cnn", DIGITS, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        for batch in train.split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (model.eval()(x[held_out]).argmax(1) == y[held_out]).float().mean().item()
    assert accuracy > 0.95
    assert sum(p.numel() for p in model.parameters()) == 65_834


@pytest.mark.parametrize(
    ("name", "problem", "width", "message"),
    [
        ("preact-resnet19", task(), None, "unknown model 'preact-resnet19'\nhint: did you mean preact-resnet18"),
        ("alexnet", task(), None, "hint: known: preact-resnet18, preact-resnet18-tiny, resnet18,"),
        (
            "vit-small",
            task(),
            8,
            "vit-small comes in one width only, got width=8\nhint: with a width: preact-resnet18,",
        ),
        ("small_cnn", task(), 8, "small-cnn comes in one width only"),
        ("resnet18", task(), 0, "width must be a number of channels, at least 1, got 0\nhint: papers: 64"),
        ("resnet18", task(size=7), None, "images must be at least 8x8 pixels, got 7x7"),
        (
            "vit-small",
            task(size=30),
            None,
            "multiple of the transformer's patch of 4 pixels, got 30\nhint: pad the images to 32",
        ),
    ],
)
def test_errors(name: str, problem: Task, width: int | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        create(name, problem, width=width)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5, 0.5, 0.5), "one number for each of the 3 channels, got 1 and 3"),
        ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5), "std must be positive in every channel, got (0.5, 0.0, 0.5)"),
    ],
)
def test_errors_of_the_constants(mean: tuple[float, ...], std: tuple[float, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        create("resnet18", Task(num_classes=10, channels=3, size=32, mean=mean, std=std))
    assert message in str(caught.value)


def test_models_import_only_torch_and_the_core() -> None:
    networks = {"__future__", "collections", "dataclasses", "torch", "gambeson.core", "gambeson.models"}
    for path in Path(gambeson.models.__file__).parent.glob("*.py"):
        more = {"foreign": {"pathlib", "re", "safetensors", "typing", "warnings"}, "folding": {"copy", "typing"}}
        allowed = networks | more.get(path.stem, set())
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                depth = 2 if name.startswith("gambeson") else 1
                assert ".".join(name.split(".")[:depth]) in allowed, f"{path.name} imports {name}"


def test_public_names() -> None:
    assert gambeson.models.__all__ == sorted(gambeson.models.__all__)
    assert all(entry.summary and "\n" not in entry.summary for entry in MODELS.values())
