"""A model as a graph, cut at layers: what depends on their weights is run again, everything else is kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from gambeson.core.errors import InputError, nearest

Layer = nn.Conv2d | nn.Linear


def critical_layers(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Layer]:
    """The layers whose weights can be perturbed: every `Conv2d` and `Linear`, in the order of `named_modules()`.

    Args:
        model: Any model.
        names: Only these.

    Returns:
        Layers by name.

    Raises:
        InputError: A name that is no such layer, a model without any, or layers that share a weight.
    """
    known = {name: m for name, m in model.named_modules() if isinstance(m, Layer)}
    if not known:
        raise InputError("the model has no Conv2d and no Linear layer whose criticality could be measured")
    tied = {id(m.weight): name for name, m in known.items()}
    twins = [f"{name} and {tied[id(m.weight)]}" for name, m in known.items() if tied[id(m.weight)] != name]
    if twins:
        raise InputError(f"{', '.join(twins)} share a weight: neither has a criticality of its own")
    if names is None:
        return known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f"the model has no Conv2d or Linear layer {', '.join(map(repr, unknown))}", hint=nearest(unknown[0], known)
        )
    return {name: known[name] for name in known if name in set(names)}


@dataclass(frozen=True, eq=False)
class Cut:
    """A model cut at a layer, or at several.

    Attributes:
        layers: Names of the layers.
        frontier: Names of the nodes that the suffix starts from; empty where the suffix starts from the images.
        suffix: Maps the frontier's values to logits. It has the model's own parameters, not copies.
    """

    layers: tuple[str, ...]
    frontier: tuple[str, ...]
    suffix: nn.Module

    def logits(self, weight: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The logits `(N, K)` with another weight in the one layer of the cut.

        Args:
            weight: Of the shape of the layer's own; may require a gradient.
            inputs: The frontier's values for N images, or the images alone where the frontier is empty.
        """
        (layer,) = self.layers
        logits: Tensor = functional_call(self.suffix, {f"{layer}.weight": weight}, tuple(inputs))
        return logits

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """The logits `(N, K)` with the weights that the model has now, such as inside `parameters.applied`.

        Args:
            inputs: As for `logits`.
        """
        logits: Tensor = self.suffix(*inputs)
        return logits


class Graph:
    """A model traced by `torch.fx`, where that is possible.

    A layer splits the graph in two: nodes that depend on the layer's output, and nodes that do not. The values on the
    border, such as a block's input and its shortcut, are the frontier: with them the suffix can be run again with
    another weight, and nothing before it, nor a branch beside it, is computed twice. The same operations on the same
    values give the same bits. A graph that does not compute what the model does (the model has hooks, random
    numbers) is not used.

    Args:
        model: Maps images to logits. A model whose forward cannot be traced (it branches on values, say) is still cut,
            before its first layer: then nothing is saved, and nothing is wrong.
        images: Two images or more, to observe which values belong to single examples.

    Attributes:
        reason: Why the model could not be traced; None if it was.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self.reason: str | None = None
        self.batch_dim: dict[fx.Node, int] = {}  # the dimension that is one entry per example
        self.fixed: set[fx.Node] = set()  # what no batch size changes
        try:
            self.graph = fx.Tracer().trace(model)
            self._observe(images)
        except Exception as error:  # tracing runs the model's own Python, which may raise anything
            self.graph, self.reason = fx.Graph(), str(error).splitlines()[0] if str(error) else type(error).__name__
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.rank = {node: number for number, node in enumerate(self.graph.nodes)}

    def uses(self, layer: str) -> list[fx.Node]:
        """The nodes that compute with the layer's weight, under whatever name: usually one call.

        A layer is named with or without `.weight`; one inside a module that is not traced (torch's MultiheadAttention)
        is used where that module is called.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False))
        weight = own[layer if layer in own else f"{layer}.weight"]
        return [node for node in self.graph.nodes if any(p is weight for p in self._parameters(node))]

    def _parameters(self, node: fx.Node) -> list[Any]:
        """What a node computes with, apart from its inputs."""
        if node.op == "call_module":
            return list(self.model.get_submodule(str(node.target)).parameters())
        return [attrgetter(str(node.target))(self.model)] if node.op == "get_attr" else []

    def position(self, layer: str) -> int:
        """Where in the forward the layer comes first."""
        return min((self.rank[node] for node in self.uses(layer)), default=0)

    def dependents(self, *layers: str) -> set[fx.Node]:
        """The nodes whose value changes with the layers' weights; none where one of the layers is not found."""
        uses = [self.uses(layer) for layer in layers]
        found = {node for nodes in uses for node in nodes} if all(uses) else set()
        for node in self.graph.nodes:
            if any(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def cut(self, *layers: str) -> Cut:
        """The model cut at layers, or before everything where that cannot be done."""
        suffix = self.dependents(*layers)
        if not suffix:  # not traced, or traced without a use
            return Cut(layers, (), self.model)
        constant = self._without_input()
        needed = {source for node in suffix for source in node.all_input_nodes} - suffix
        frontier = sorted((node for node in needed if node not in constant), key=self.rank.__getitem__)
        if not all(self.batch_dim.get(node) == 0 for node in frontier):
            return Cut(layers, (), self.model)
        return Cut(layers, tuple(node.name for node in frontier), self._build(frontier, suffix, None))

    def between(self, known: Iterable[str], wanted: Sequence[str]) -> tuple[tuple[str, ...], nn.Module]:
        """The part of the graph that computes some nodes from others.

        Args:
            known: Names of nodes whose values are there.
            wanted: Names of nodes whose values are needed.

        Returns:
            The known nodes that it starts from, and a module that maps their values to a tuple of the wanted ones. The
            images are a known node too: the placeholder.
        """
        there = {self.nodes[name] for name in known} | {node for node in self.graph.nodes if node.op == "placeholder"}
        inner: set[fx.Node] = set()
        start: set[fx.Node] = set()
        todo = [self.nodes[name] for name in wanted]
        while todo:
            node = todo.pop()
            if node in there:
                start.add(node)
            elif node not in inner:
                inner.add(node)
                todo.extend(node.all_input_nodes)
        sources = sorted(start, key=self.rank.__getitem__)
        module = self._build(sources, inner, [self.nodes[name] for name in wanted])
        return tuple(node.name for node in sources), module

    @property
    def images(self) -> str:
        """Name of the placeholder."""
        return next(node.name for node in self.graph.nodes if node.op == "placeholder")

    def _observe(self, images: Tensor) -> None:
        """Which nodes hold one value per example, and along which dimension; which nodes no batch size changes."""
        seen: dict[fx.Node, list[Any]] = {}
        module = fx.GraphModule(self.model, self.graph)
        batches = (images[:1], torch.cat([images[:1]] * 3))  # of 1 and of 3 images

        class Watch(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                seen.setdefault(n, []).append(value)
                return value

        with torch.no_grad():
            for batch in batches:
                found = Watch(module).run(batch)
            wanted = self.model(batches[-1])
        if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()), equal_nan=True):
            raise RuntimeError("the traced graph computes something else: the model has hooks, or random numbers")
        for node, (one, other) in seen.items():
            if isinstance(one, Tensor):
                sizes = list(zip(one.shape, other.shape, strict=True))
                moving = [dim for dim, (a, b) in enumerate(sizes) if a != b]
                if len(moving) == 1 and sizes[moving[0]] == (1, 3):
                    self.batch_dim[node] = moving[0]
                elif not moving:
                    self.fixed.add(node)
            elif (isinstance(one, torch.Size) or not isinstance(one, (tuple, list, dict))) and one == other:
                self.fixed.add(node)

    def _without_input(self) -> set[fx.Node]:
        """Nodes that do not depend on the images: parameters, and what is made of them."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op != "placeholder" and all(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def _build(self, sources: Sequence[fx.Node], inner: set[fx.Node], wanted: Sequence[fx.Node] | None) -> nn.Module:
        """A module that runs the `inner` nodes, and the constants they need, on the values of `sources`."""
        graph, copies = fx.Graph(), {}
        for node in sources:
            copies[node] = graph.placeholder(node.name)
        constant = self._without_input()
        for node in self.graph.nodes:
            if node in copies or node.op == "placeholder" or (node.op == "output" and wanted is not None):
                continue
            if node in inner or node in constant:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        if wanted is not None:
            graph.output(tuple(copies[node] for node in wanted))
        module = fx.GraphModule(self.model, graph)
        module.graph.eliminate_dead_code()
        module.recompile()
        module.train(False)
        return module
