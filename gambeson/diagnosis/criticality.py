"""Measuring module robust criticality (MRC): how much robust loss a layer's weights alone can cost in a small ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from gambeson.attacks.pgd import PGD
from gambeson.core.errors import InputError, require_known
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.diagnosis.criticality_store import Store
from gambeson.diagnosis.layer_search import Ascent, Problem, climb
from gambeson.diagnosis.mrc import MRC, PROTOCOLS, Criticality, Strategy
from gambeson.diagnosis.prefixes import Frontiers, PrefixCache
from gambeson.diagnosis.suffix import Cut, Graph, critical_layers
from gambeson.evaluation.examples import check_examples


def adversarial_set(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    steps: int = 10,
    rel_step_size: float = 0.25,
    batch_size: int = 128,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """The fixed adversarial images that criticality is measured on: the last iterate of PGD from a uniform start.

    Args:
        model: Maps images in [0, 1] to logits; attacked in evaluation mode.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1], not augmented.
        y: Labels `(N,)`.
        threat: The ball.
        steps: PGD steps.
        rel_step_size: Step as a multiple of eps. 1/4 is 2/255 at 8/255; the release types 2/225, which is 0.2833.
        batch_size: Images at a time.
        seed: Of the starts.
        progress: Called with the number of images done.

    Returns:
        Images `(N, C, H, W)`, float32, on the model's device.
    """
    attack = PGD(steps=steps, rel_step_size=rel_step_size)
    device = next(model.parameters()).device
    streams, made = Streams(seed), []
    for number, begin in enumerate(range(0, len(y), batch_size)):
        part = slice(begin, begin + batch_size)
        images = to_unit(x[part].to(device))
        batch = Batch(images, y[part].to(device), torch.arange(len(images), device=device))
        made.append(attack(model, batch, threat, streams.at("criticality", number, device)))
        if progress:
            progress(len(images))
    return torch.cat(made)


def measure_criticality(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    protocol: MRC | None = None,
    *,
    layers: Sequence[str] | None = None,
    strategy: Strategy = "cached",
    argmin_only: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    memory: int = 4 * 2**30,
    store: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Criticality:
    """MRC of every `Conv2d` and `Linear` weight of a model.

    Nothing is computed twice that cannot change. With `cached` (the default), the part of the network that does not
    depend on the layer is run once and its values are kept, from the first layer to the last, so that only one stage's
    values are alive. With `wavefront`, all layers are searched at once: their activations travel through the network as
    one batch, which saves launches on a GPU and needs no cache. `naive` runs the whole network in every pass. On the
    CPU in float32, with batches of the same images (`shuffle=False`), `cached` gives the bits of `naive`; `wavefront`
    may differ by rounding, and steps of size 1 enlarge what differs. The gradients of the first step are the same
    network's for all layers, and come from one backward.

    Args:
        model: Maps images in [0, 1] to logits; comes back as it was.
        x: Adversarial images `(N, C, H, W)`, float, on the model's device; see `adversarial_set`.
        y: Labels `(N,)`.
        protocol: How the worst weights are searched; the release's by default.
        layers: Only these; all by default. Layers that the forward does not call are left out (the projection inside
            torch's MultiheadAttention is used without being called).
        strategy: See above.
        argmin_only: Stop searching a layer once its loss exceeds the best finished one. The least critical layer is
            then exact, the others' MRC a lower bound. Needs `reduce="max"`; layers that look least critical to first
            order come first.
        shuffle: Draw the mini-batches anew in every epoch, alike for all layers; otherwise they are taken in order.
        seed: Of the mini-batches.
        memory: Bytes for values that are kept.
        store: JSON file to which every finished layer is written, and from which a search of the same model, images and
            settings goes on.
        progress: Called with a layer's name after every epoch, or when it ends early.

    Returns:
        The criticality of every layer.

    Raises:
        InputError: Unknown layers, images or labels that do not fit, or `argmin_only` without `reduce="max"`.
        RunError: The store belongs to another search; every difference is named.
    """
    protocol = protocol or PROTOCOLS["release"]
    require_known("strategy", strategy, get_args(Strategy))
    if argmin_only and protocol.reduce != "max":
        raise InputError(
            "the search can end early only where the maximum over epochs counts: the loss of the last weights may fall",
            hint="use the release protocol, or search all layers",
        )
    if argmin_only and strategy == "wavefront":
        raise InputError("a wavefront searches all layers to the end", hint="use the cached strategy for argmin_only")
    if not x.is_floating_point():
        raise InputError("criticality is measured on adversarial images in [0, 1]", hint="see adversarial_set")
    with batch_norm(model, "running"), frozen(model):
        names = _used(model, critical_layers(model, layers), x, required=layers is not None)
        with torch.no_grad():
            width = model(x[:1]).shape[1] if len(x) else 1
        check_examples(x, y, width)
        problem = Problem(model, x, y, protocol, seed, shuffle)
        kept = Store(store, problem, argmin_only)
        base = problem.evaluate(lambda index: model(x[index]))
        todo = [name for name in names if name not in kept.rows]
        if strategy == "wavefront":
            from gambeson.diagnosis.wavefront import wavefront

            rows, reason = wavefront(problem, todo, base, progress)
            for row in rows:
                kept.add(row)
        else:
            reason = _one_by_one(problem, todo, base, kept, strategy, argmin_only, memory, progress)
    found = tuple(kept.rows[name] for name in names)
    return Criticality(found, *base, len(y), protocol, strategy, reason)


def _one_by_one(
    problem: Problem,
    names: Sequence[str],
    base: tuple[float, float],
    kept: Store,
    strategy: Strategy,
    argmin_only: bool,
    memory: int,
    progress: Callable[[str], None] | None,
) -> str | None:
    """Search layer after layer; returns why the model could not be cut."""
    if not names:
        return None
    model, x, reason = problem.model, problem.x, None
    layers = critical_layers(model, names)
    first = problem.first_gradients(names) if strategy != "naive" else {}
    order, cache, cuts = list(names), None, {name: Cut((name,), (), model) for name in names}
    if strategy == "cached":
        graph = Graph(model, x[:2])
        reason = graph.reason
        cuts = {name: graph.cut(name) for name in names}
        order.sort(key=graph.position)
    if argmin_only:
        if not first:
            first = problem.first_gradients(names)
        order.sort(key=lambda name: float(layers[name].weight.norm() * first[name].norm()))
        first = first if strategy != "naive" else {}
    if strategy == "cached":
        cache = PrefixCache(graph, x, [cuts[name] for name in order], problem.protocol.batch_size, memory)
    for name in order:
        inputs: Frontiers = lambda index: [x[index]]  # noqa: E731
        cut = cuts[name]
        if cache is not None:
            cut, inputs = cache.advance(cut)
        limit = min((row.loss for row in kept.rows.values() if not row.pruned), default=math.inf)
        ascent = Ascent(name, layers[name].weight, problem.protocol, base)
        pruned = climb(problem, ascent, cut, inputs, first.get(name), limit if argmin_only else math.inf, progress)
        kept.add(ascent.result(pruned))
    return reason


def _used(model: nn.Module, layers: dict[str, Any], x: Tensor, *, required: bool) -> list[str]:
    """The layers that the forward calls: the weights of others have no gradient, and would look uncritical."""
    called: set[str] = set()
    handles = [
        layer.register_forward_pre_hook(lambda _m, _i, name=name: called.add(name)) for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(x[:2])
    finally:
        for handle in handles:
            handle.remove()
    unused = [name for name in layers if name not in called]
    if unused and required:
        raise InputError(f"the forward does not use {', '.join(unused)}: nothing depends on these weights")
    if not called:
        raise InputError("the forward uses none of the model's Conv2d and Linear layers")
    return [name for name in layers if name in called]
