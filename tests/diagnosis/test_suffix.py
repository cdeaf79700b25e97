"""A model cut at a layer computes what the whole model computes, wherever the layer is; kept values fit a budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from gambeson.core.errors import InputError
from gambeson.core.parameters import applied
from gambeson.core.types import Task
from gambeson.diagnosis.criticality import measure_criticality
from gambeson.diagnosis.groups import short
from gambeson.diagnosis.mrc import MRC
from gambeson.diagnosis.prefixes import PrefixCache
from gambeson.diagnosis.suffix import Graph, critical_layers
from gambeson.models.resnets import preact_resnet18, resnet18
from gambeson.models.small_cnn import SmallCNN
from gambeson.models.vit import VisionTransformer
from gambeson.models.wide_resnet import WideResNet

TASK = Task(num_classes=3, channels=3, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
COUNT, BATCH, SEED = 7, 4, 4
QUICK = MRC(epochs=2, batch_size=BATCH)
ENOUGH = 2**30


class Twice(nn.Module):
    """One layer in two places, with another layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.between, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.stem(x).relu()).relu()
        return self.head(self.shared(self.between(x).relu()).mean((2, 3)))


class Branches(nn.Module):
    """Two branches that meet; a parameter that is no layer's; layers declared in another order than they are called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.right = nn.Linear(4, 3), nn.Conv2d(3, 4, 1)
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))
        self.scale = nn.Parameter(torch.full((1, 4, 1, 1), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return self.head((left * self.scale.exp() + self.right(x)).relu().mean((2, 3)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.second(x.relu() if x.sum() > 0 else x.sigmoid())


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet18(TASK, width=4),
    "preact-resnet18": lambda: preact_resnet18(TASK, width=4),
    "wrn-10": lambda: WideResNet(TASK, depth=10, width=8),
    "vit": lambda: VisionTransformer(TASK, patch=4, dim=16, depth=2, heads=2),
    "small-cnn": lambda: SmallCNN(TASK),
    "twice": Twice,
    "branches": Branches,
}
TRACED = list(NETS)
NETS["branching"] = Branching


def made(net: str) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = NETS[net]().eval().requires_grad_(False)
        return model, torch.rand(COUNT, 3, 8, 8), torch.randint(0, 3, (COUNT,))


def moved(weight: Tensor) -> Tensor:
    return weight + 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))


def cache_of(model: nn.Module, x: Tensor, memory: int) -> tuple[Graph, PrefixCache, list[str]]:
    graph = Graph(model, x[:2])
    order = sorted(critical_layers(model), key=graph.position)
    return graph, PrefixCache(graph, x, [graph.cut(name) for name in order], BATCH, memory), order


@pytest.mark.parametrize("memory", [ENOUGH, 6000, 0])
@pytest.mark.parametrize("net", NETS)
def test_the_suffix_with_another_weight_is_the_model_with_that_weight(net: str, memory: int) -> None:
    model, x, _ = made(net)
    graph, cache, order = cache_of(model, x, memory)
    plain = torch.cat([model(part) for part in x.split(BATCH)])
    for name in order:
        weight = moved(model.get_submodule(name).weight)
        cut, inputs = cache.advance(graph.cut(name))
        changed = False
        for index in torch.arange(COUNT).split(BATCH):
            wanted = functional_call(model, {f"{name}.weight": weight}, (x[index],))
            assert torch.equal(cut.logits(weight, inputs(index)), wanted), name
            changed |= not torch.equal(wanted, plain[index])
        assert changed
        drawn = torch.tensor([6, 0, 5])
        wanted = functional_call(model, {f"{name}.weight": weight}, (x[drawn],))
        assert torch.allclose(cut.logits(weight, inputs(drawn)), wanted, atol=1e-5), name


@pytest.mark.parametrize("net", NETS)
def test_a_cut_at_several_layers_runs_with_the_weights_that_the_model_has(net: str) -> None:
    model, x, _ = made(net)
    graph, _, order = cache_of(model, x, ENOUGH)
    plain = model(x)
    for layers in (order[:2], order[-2:], order[::2]):
        cut = graph.cut(*layers)
        cut, inputs = PrefixCache(graph, x, [cut], BATCH, ENOUGH).advance(cut)
        weights = {f"{name}.weight": model.get_submodule(name).weight for name in layers}
        with applied(model, {name: moved(w) - w for name, w in weights.items()}):
            for part in (slice(0, BATCH), slice(BATCH, COUNT)):
                wanted = model(x[part])
                assert torch.equal(cut.run(inputs(part)), wanted), layers
                assert not torch.allclose(wanted, plain[part])
    assert torch.equal(model(x), plain)


def test_of_a_slice_nothing_is_copied() -> None:
    model, x, _ = made("resnet18")
    graph = Graph(model, x[:2])
    cut, inputs = PrefixCache(graph, x, [graph.cut("layer2.0.conv2")], BATCH, ENOUGH).advance(
        graph.cut("layer2.0.conv2")
    )
    whole, part = inputs(slice(0, COUNT)), inputs(slice(2, 5))
    assert len(whole) == len(cut.frontier) == 2
    for a, b in zip(whole, part, strict=True):
        assert b.data_ptr() == a[2:].data_ptr()


class Tied(nn.Module):
    """One weight in two layers, so that the second has no parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.between, self.second = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(192, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(self.head(x.flatten(1)))))


class Attends(nn.Module):
    """Torch's attention, whose weights are used by a module that is not traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(192, 8), nn.Linear(8, 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))[:, None]
        return self.last(self.attention(h, h, h, need_weights=False)[0][:, 0])


@pytest.mark.parametrize(
    ("build", "weight"),
    [(Tied, "first.weight"), (Attends, "attention.in_proj_weight"), (Attends, "attention.out_proj.weight")],
)
def test_a_weight_is_found_under_every_name(build: Callable[[], nn.Module], weight: str) -> None:
    torch.manual_seed(SEED)
    model, x = build().eval().requires_grad_(False), torch.rand(COUNT, 3, 8, 8)
    graph = Graph(model, x[:2])
    cut = graph.cut(short(weight))
    assert cut.frontier
    assert cut.frontier != (graph.images,)
    cut, inputs = PrefixCache(graph, x, [cut], COUNT, ENOUGH).advance(cut)
    with applied(model, {weight: moved(model.get_parameter(weight)) - model.get_parameter(weight)}):
        assert torch.equal(cut.run(inputs(slice(None))), model(x))


class Noisy(Branches):
    """Random numbers in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.1 * torch.randn_like(x))


def hooked() -> nn.Module:
    model = Branches()
    model.register_forward_hook(lambda _m, _i, output: 2 * output)
    return model


@pytest.mark.parametrize("build", [Noisy, hooked])
def test_a_graph_that_computes_something_else_is_not_used(build: Callable[[], nn.Module]) -> None:
    model, x = build().eval(), torch.rand(COUNT, 3, 8, 8)
    graph = Graph(model, x[:2])
    assert graph.reason is not None
    assert "something else" in graph.reason
    assert graph.cut("head").suffix is model


@pytest.mark.parametrize("net", TRACED)
def test_only_what_depends_on_the_layer_is_run(net: str) -> None:
    """The layers of the suffix are those whose input changes with the weight, observed and not derived from a graph."""
    model, x, _ = made(net)
    graph = Graph(model, x[:2])
    assert graph.reason is None
    layers = critical_layers(model)

    def inputs(name: str | None) -> dict[str, list[Tensor]]:
        seen: dict[str, list[Tensor]] = {}
        handles = [
            layer.register_forward_pre_hook(lambda _m, args, key=key: seen.setdefault(key, []).append(args[0]))
            for key, layer in layers.items()
        ]
        functional_call(model, {f"{name}.weight": moved(layers[name].weight)} if name else {}, (x,))
        for handle in handles:
            handle.remove()
        return seen

    plain = inputs(None)
    for name in layers:
        changed = inputs(name)
        wanted = sum(not torch.equal(a, b) for key in layers for a, b in zip(plain[key], changed[key], strict=True))
        own = sum(torch.equal(a, b) for a, b in zip(plain[name], changed[name], strict=True))
        calls: list[str] = []
        cut, at = PrefixCache(graph, x, [graph.cut(name)], BATCH, ENOUGH).advance(graph.cut(name))
        values = at(torch.arange(COUNT))
        handles = [
            layer.register_forward_pre_hook(lambda *_, key=key, calls=calls: calls.append(key))
            for key, layer in layers.items()
        ]
        cut.logits(layers[name].weight, values)
        for handle in handles:
            handle.remove()
        assert len(calls) == wanted + own, name
        assert calls[0] == name


def test_a_block_is_cut_into_its_input_and_its_shortcut() -> None:
    model, x, _ = made("resnet18")
    graph = Graph(model, x[:2])
    assert graph.cut("conv1").frontier == ("truediv",)  # the normalised images
    assert graph.cut("layer1.1.conv1").frontier == ("relu_2",)  # the block's input is the shortcut too
    assert len(graph.cut("layer1.1.conv2").frontier) == 2
    assert len(graph.cut("layer2.0.shortcut.0").frontier) == 2
    assert graph.cut("linear").frontier == ("mean",)


@pytest.mark.parametrize("net", ["wrn-10", "vit", "twice", "branches"])
def test_the_largest_number_of_bytes_is_counted_and_stays_below_the_budget(net: str) -> None:
    model, x, _ = made(net)

    def largest(memory: int) -> tuple[int, int, int]:
        graph, cache, order = cache_of(model, x, memory)
        whole, held = 0, 0
        for name in order:
            cut, inputs = cache.advance(graph.cut(name))
            whole += bool(graph.cut(name).frontier) and not cut.frontier
            kept = zip(cut.frontier, inputs(torch.arange(COUNT)), strict=False)
            held = max(held, sum(t.numel() * t.element_size() for node, t in kept if node != graph.images))
        return cache.largest, whole, held

    needed, whole, held = largest(ENOUGH)
    assert whole == 0
    assert needed >= held > 0
    assert largest(needed) == (needed, 0, held)
    less, whole, held = largest(needed - 1)
    assert held <= less < needed
    assert whole >= 1
    assert (largest(0)[0], largest(0)[2]) == (0, 0)


@pytest.mark.parametrize("net", ["wrn-10", "vit", "branches"])
def test_without_memory_the_bits_are_the_same(net: str) -> None:
    model, x, y = made(net)
    protocol = MRC(epochs=1, batch_size=BATCH)
    found = [
        measure_criticality(model, x, y, protocol, shuffle=False, memory=memory).layers for memory in (ENOUGH, 6000, 0)
    ]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("net", ["twice", "branches"])
def test_layers_in_two_places_and_beside_each_other_are_measured_right(net: str) -> None:
    model, x, y = made(net)
    cached, naive = (
        measure_criticality(model, x, y, QUICK, strategy=strategy, shuffle=False) for strategy in ("cached", "naive")
    )
    assert cached.untraced is None
    assert cached.layers == naive.layers
    assert min(row.mrc for row in cached.layers) > 1e-4


def test_channels_last_values_keep_their_layout() -> None:
    model, x, _ = made("small-cnn")
    model, x = model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    graph, cache, order = cache_of(model, x, ENOUGH)
    for name in order[1:-1]:
        _, inputs = cache.advance(graph.cut(name))
        for value in inputs(torch.tensor([3, 1, 6])):
            assert value.ndim == 4
            assert value.is_contiguous(memory_format=torch.channels_last)
            assert not value.is_contiguous()


def test_a_model_that_cannot_be_traced_is_cut_before_everything() -> None:
    model, x, _ = made("branching")
    graph = Graph(model, x[:2])
    assert graph.reason is not None
    assert "control flow" in graph.reason
    assert "\n" not in graph.reason
    cut = graph.cut("second")
    assert cut.frontier == ()
    assert cut.suffix is model


def test_the_layers_that_can_be_perturbed() -> None:
    model, _, _ = made("branches")
    assert list(critical_layers(model)) == ["head", "right", "left.0", "left.2"]
    assert list(critical_layers(model, ["left.2", "head"])) == ["head", "left.2"]
    with pytest.raises(InputError, match=r"'left\.1', 'hea'") as error:
        critical_layers(model, ["left.1", "hea"])
    assert error.value.hint is not None
    assert "left.0" in error.value.hint
