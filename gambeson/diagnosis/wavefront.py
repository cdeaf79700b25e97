"""Criticality of all layers at once: every layer's perturbed activations travel through the network as one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.func import functional_call

from gambeson.core.errors import InputError
from gambeson.diagnosis.layer_search import Ascent, Problem, judged
from gambeson.diagnosis.mrc import LayerCriticality
from gambeson.diagnosis.suffix import Graph, critical_layers


class Wave(NamedTuple):
    """The value of a node.

    Attributes:
        plain: With the model's own weights.
        owners: The layers whose perturbation has reached the node, in the order in which they joined.
        moved: The owners' values, one after the other along the batch; None without owners.
    """

    plain: Any
    owners: tuple[str, ...]
    moved: Tensor | None


def wavefront(
    problem: Problem,
    names: Sequence[str],
    base: tuple[float, float],
    progress: Callable[[str], None] | None,
) -> tuple[list[LayerCriticality], str | None]:
    """Search all layers side by side.

    The images go through the model's own weights once. At a layer that is searched, a second stream starts with its
    perturbed weight; behind it the streams of all layers before are one batch. The loss is the sum of the
    layers' losses, and since no stream touches another, one backward gives every layer its own gradient.

    Args:
        problem: Images and mini-batches.
        names: The layers.
        base: Mean cross-entropy and accuracy with the model's own weights.
        progress: As in `measure_criticality`.

    Returns:
        What was found, in the order of `names`, and None: the model could be traced.

    Raises:
        InputError: The model cannot be traced, or computes with the size of the batch where the streams meet.
    """
    graph = Graph(problem.model, problem.x[:2])
    if graph.reason is not None:
        raise InputError(f"the model cannot be traced ({graph.reason})", hint="use the cached strategy")
    layers = critical_layers(problem.model, names)
    for name in names:
        if [node.op for node in graph.uses(name)] != ["call_module"]:
            raise InputError(f"the forward uses {name} more than once", hint="use the cached strategy")
    states = {name: Ascent(name, layers[name].weight, problem.protocol, base) for name in names}
    first = problem.first_gradients(names) if names else {}
    full_batch = problem.protocol.update == "full-batch"
    epoch = 0
    while active := {name: state for name, state in states.items() if not state.done}:
        if full_batch and epoch == 0:
            for name, state in active.items():
                state.step(first[name])
        else:
            total: dict[str, Tensor] = {}
            for number, index in enumerate(problem.batches(epoch)):
                grads = first if epoch == number == 0 else _gradients(graph, problem, active, index)
                for name, state in active.items():
                    if full_batch:
                        total[name] = total[name] + grads[name] if name in total else grads[name]
                    else:
                        state.step(grads[name])
            for name, grad in total.items():
                active[name].step(grad)
        judge = {name: state for name, state in active.items() if state.end_epoch()}
        if judge:
            found = _evaluate(graph, problem, judge)
            for name, state in judge.items():
                state.record(*found[name])
        if progress:
            for name in active:
                progress(name)
        epoch += 1
    return [state.result() for state in states.values()], None


def _gradients(graph: Graph, problem: Problem, active: dict[str, Ascent], index: Tensor) -> dict[str, Tensor]:
    weights = {name: state.weight.detach().requires_grad_() for name, state in active.items()}
    logits = _forward(graph, weights, problem.x[index])
    loss = torch.stack([problem.loss(logits[name], index) for name in weights]).sum()
    return dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))


def _evaluate(graph: Graph, problem: Problem, judge: dict[str, Ascent]) -> dict[str, tuple[float, float]]:
    totals: dict[str, Tensor] = {}
    with torch.no_grad():
        for index in problem.batches():
            logits = _forward(graph, {name: state.weight for name, state in judge.items()}, problem.x[index])
            for name in judge:
                found = judged(logits[name], problem.y[index])
                totals[name] = totals[name] + found if name in totals else found
    result = {}
    for name, total in totals.items():
        loss, correct = (total / len(problem.y)).tolist()
        result[name] = (loss, correct)
    return result


def _forward(graph: Graph, weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Logits by layer."""
    modules = dict(graph.model.named_modules())
    last = {source: node for node in graph.graph.nodes for source in node.all_input_nodes}  # its last reader
    waves: dict[fx.Node, Wave] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            waves[node] = Wave(x, (), None)
        elif node.op == "output":
            final = waves[node.args[0]]
            assert final.moved is not None
            return dict(zip(final.owners, final.moved.split(len(x)), strict=True))
        else:
            waves[node] = _run(graph, node, waves, weights, modules, len(x))
        for source in node.all_input_nodes:
            if last[source] is node:
                del waves[source]
    raise InputError("the traced model has no output")


def _run(
    graph: Graph,
    node: fx.Node,
    waves: dict[fx.Node, Wave],
    weights: dict[str, Tensor],
    modules: dict[str, Any],
    size: int,
) -> Wave:
    def call(value_of: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.map_arg(node.args, value_of), fx.map_arg(node.kwargs, value_of)
        if node.op == "call_module":
            return modules[str(node.target)](*args, **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        value: Any = graph.model
        for part in str(node.target).split("."):
            value = getattr(value, part)
        return value

    with torch.no_grad():
        plain = call(lambda source: waves[source].plain)
    sources = node.all_input_nodes
    owners = tuple(dict.fromkeys(owner for source in sources for owner in waves[source].owners))
    joins = node.op == "call_module" and node.target in weights
    if not owners and not joins:
        return Wave(plain, (), None)
    dim = graph.batch_dim.get(node)
    if node in graph.fixed or not isinstance(
        plain, Tensor
    ):  # a size: the same in all streams, or refused by its reader
        return Wave(plain, (), None)
    foreign = [one for one in (node, *sources) if one not in graph.batch_dim and one not in graph.fixed]
    if dim is None or foreign:
        raise InputError(
            f"the model computes {foreign[0].name if foreign else node.name} from the size of the batch, so layers"
            " cannot share one",
            hint="use the cached strategy",
        )
    moved = [call(lambda source: _together(waves[source], owners, size, graph.batch_dim.get(source)))] if owners else []
    if joins:
        name = str(node.target)
        inputs = [waves[source].plain for source in sources]
        moved.append(functional_call(modules[name], {"weight": weights[name]}, tuple(inputs)))
        owners = (*owners, name)
    return Wave(plain, owners, torch.cat(moved, dim) if len(moved) > 1 else moved[0])


def _together(wave: Wave, owners: tuple[str, ...], size: int, dim: int | None) -> Any:
    """The values of all `owners` as one batch; an owner that has not reached the node sees the plain value."""
    if dim is None:
        return wave.plain
    if wave.owners == owners:
        return wave.moved
    own = dict(zip(wave.owners, wave.moved.split(size, dim), strict=True)) if wave.moved is not None else {}
    return torch.cat([own.get(owner, wave.plain) for owner in owners], dim)
