"""Module robust criticality (MRC): how much robust loss a layer's weights alone can cost, inside a small ball."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from gambeson.attacks.pgd import PGD
from gambeson.core.errors import InputError, RunError, require_known
from gambeson.core.losses import ce
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.streams import Streams
from gambeson.core.tables import differences
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.diagnosis.suffix import Cut, Frontiers, Graph, PrefixCache, critical_layers
from gambeson.engine.run import write_json
from gambeson.evaluation.examples import check_examples

Strategy = Literal["cached", "wavefront", "naive"]


@dataclass(frozen=True, kw_only=True)
class MRC:
    """How the worst weights are searched.

    `MRC_i = max_{|V_i| <= radius |W_i|} L(W + V_i) - L(W)`, L the mean cross-entropy on fixed adversarial images, V_i a
    perturbation of the weight of layer i alone (no bias, no normalisation), norms Euclidean over the whole tensor.

    Args:
        update: `sgd`: a step after every mini-batch; `full-batch`: one step per epoch along the summed gradient of
            all images.
        on_violation: After leaving the ball: `project` and go on, or project and `stop`.
        project_every: When the ball is looked at: after every `epoch` or every `step`.
        reduce: The loss that counts: the `max` over the ends of the epochs, or that of the `last` weights.
        epochs: Passes over the images.
        lr: Step along the gradient: of the mini-batch's mean loss for `sgd`, of the summed loss for `full-batch`.
        batch_size: Images per mini-batch.
        radius: Size of the ball, as a share of the weight's norm.

    Raises:
        InputError: A setting out of range.

    References:
        Zhu, Wang, Hu, Xie, Yang, "Improving generalization of adversarial training via robust critical fine-tuning",
        ICCV 2023, https://arxiv.org/abs/2308.02533, section 3; microsoft/robustlearn, RiFT/main.py:16-146.
    """

    update: Literal["sgd", "full-batch"] = "sgd"
    on_violation: Literal["project", "stop"] = "project"
    project_every: Literal["epoch", "step"] = "epoch"
    reduce: Literal["max", "last"] = "max"
    epochs: int = 10
    lr: float = 1.0
    batch_size: int = 512
    radius: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (
            ("update", ("sgd", "full-batch")),
            ("on_violation", ("project", "stop")),
            ("project_every", ("epoch", "step")),
            ("reduce", ("max", "last")),
        ):
            require_known(name, getattr(self, name), known)
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "radius"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive and finite, got {getattr(self, name)}")


PROTOCOLS: dict[str, MRC] = {
    "release": MRC(),
    "paper": MRC(update="full-batch", on_violation="stop", reduce="last"),
}
"""The released code (mini-batch ascent, projection once per epoch, maximum over epochs) and the paper's algorithm 1.

Algorithm 1 adds up the gradients of all batches at the same weights, then projects and stops at the first violation. It
prints neither the step nor whether L is a sum; its equation 1 is a sum, and so is ours, with step 1: then practically
every layer leaves the ball in the first epoch and the result is the loss at `W + radius |W| g / |g|`. Where the
algorithm is inconsistent (it projects around the last iterate and evaluates the last but one), the projection is around
W and the last iterate is evaluated. That iterate can have a lower loss than W, and its MRC is then negative, as the
maximum in the definition cannot be: the ball contains 0.
"""


@dataclass(frozen=True)
class LayerCriticality:
    """What was found for one layer.

    Attributes:
        layer: Its name.
        shape: Of the weight.
        mrc: Increase of the mean cross-entropy.
        loss: Mean cross-entropy at the weights that count.
        accuracy: Share of the adversarial images that they classify correctly.
        distance: `|V| / |W|` at the last weights.
        epochs: Passes that were made.
        pruned: Whether the search stopped once the layer could no longer be the least critical one; `mrc` is then a
            lower bound.
    """

    layer: str
    shape: tuple[int, ...]
    mrc: float
    loss: float
    accuracy: float
    distance: float
    epochs: int
    pruned: bool = False


@dataclass(frozen=True)
class Criticality:
    """The criticality of every layer.

    Attributes:
        layers: In the order of the forward.
        loss: Mean cross-entropy on the adversarial images with the model's own weights.
        accuracy: Share of them that it classifies correctly.
        n: Number of images.
        protocol: How it was searched.
        strategy: How it was computed; without influence on the result beyond rounding.
        untraced: Why nothing could be reused between passes, or None.
    """

    layers: tuple[LayerCriticality, ...]
    loss: float
    accuracy: float
    n: int
    protocol: MRC
    strategy: Strategy
    untraced: str | None = None

    def ranking(self) -> list[LayerCriticality]:
        """From the least to the most critical; pruned layers, of which only a lower bound is known, come last."""
        return sorted(self.layers, key=lambda row: (row.pruned, row.mrc))

    @property
    def argmin(self) -> LayerCriticality:
        """The layer that robustness needs least."""
        return self.ranking()[0]

    def drop(self, row: LayerCriticality) -> float:
        """By how much the accuracy on the adversarial images falls, in [-1, 1]."""
        return self.accuracy - row.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            **{key: value for key, value in asdict(self).items() if key != "layers"},
            "layers": [{**asdict(row), "drop": self.drop(row)} for row in self.layers],
            "ranking": [row.layer for row in self.ranking()],
        }


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
        kept = _Store(store, problem, argmin_only)
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


class Problem:
    """The images, their mini-batches, and what both strategies do with them.

    Args:
        model: The model, in evaluation mode and frozen.
        x: Adversarial images.
        y: Labels.
        protocol: The settings.
        seed: Of the mini-batches.
        shuffle: Whether they are drawn anew in every epoch.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, protocol: MRC, seed: int, shuffle: bool) -> None:
        self.model, self.x, self.y, self.protocol = model, x, y.to(x.device), protocol
        self.streams, self.shuffle = Streams(seed), shuffle

    def batches(self, epoch: int | None = None) -> Iterator[Tensor]:
        """Positions of the mini-batches of an epoch; None, or full-batch updates: in order."""
        order = torch.arange(len(self.y), device=self.x.device)
        if epoch is not None and self.shuffle and self.protocol.update == "sgd":
            order = torch.randperm(len(self.y), generator=self.streams.at("criticality-batches", epoch)).to(order)
        yield from order.split(self.protocol.batch_size)

    def loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """What is climbed: the mean over a mini-batch, the sum for full-batch updates."""
        values = ce(logits, self.y[index])
        return values.sum() if self.protocol.update == "full-batch" else values.mean()

    def evaluate(self, logits_of: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy over all images."""
        total = torch.zeros(2, dtype=torch.float64, device=self.x.device)
        with torch.no_grad():
            for index in self.batches():
                total += judged(logits_of(index), self.y[index])
        loss, correct = (total / len(self.y)).tolist()
        return loss, correct

    def first_gradients(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradient of the first update for all layers, from one backward per batch of it.

        For `sgd` that is the first mini-batch, for `full-batch` all images.
        """
        layers = critical_layers(self.model, names)
        weights = {name: layers[name].weight.detach().requires_grad_() for name in layers}
        total: dict[str, Tensor] = {}
        for index in self.batches(0):
            logits = torch.func.functional_call(
                self.model, {f"{name}.weight": w for name, w in weights.items()}, (self.x[index],)
            )
            grads = torch.autograd.grad(self.loss(logits, index), list(weights.values()))
            total = {name: total[name] + g if total else g for name, g in zip(weights, grads, strict=True)}
            if self.protocol.update == "sgd":
                break
        return total


def judged(logits: Tensor, y: Tensor) -> Tensor:
    """Summed cross-entropy and number of correct answers, float64 `(2,)`."""
    return torch.stack([ce(logits, y).double().sum(), (logits.argmax(1) == y).double().sum()])


class Ascent:
    """The state of one layer's search.

    Args:
        name: The layer.
        weight: Its weight W; not written to.
        protocol: The settings.
        base: Mean cross-entropy and accuracy at W.
    """

    def __init__(self, name: str, weight: Tensor, protocol: MRC, base: tuple[float, float]) -> None:
        self.name, self.start, self.protocol, self.base = name, weight.detach(), protocol, base
        self.weight = self.start.clone()
        self.radius = protocol.radius * self.start.norm()
        self.best: tuple[float, float] | None = None
        self.epoch, self.left, self.done = 0, False, False

    def step(self, grad: Tensor) -> None:
        """One step up."""
        self.weight = self.weight + self.protocol.lr * grad
        if self.protocol.project_every == "step":
            self.project()

    def project(self) -> None:
        """Back into the ball: `W + radius |W| V / |V|`. The release projects from beyond its rim, the paper from it."""
        v = self.weight - self.start
        size = v.norm()
        outside = size >= self.radius if self.protocol.on_violation == "stop" else size > self.radius
        if bool(outside & (size > 0)):
            self.left = True
            self.weight = self.start + v * (self.radius / size)

    def end_epoch(self) -> bool:
        """Close an epoch of steps; whether the weights must now be evaluated."""
        if self.protocol.project_every == "epoch":
            self.project()
        self.epoch += 1
        self.done = self.epoch == self.protocol.epochs or (self.left and self.protocol.on_violation == "stop")
        return self.done or self.protocol.reduce == "max"

    def record(self, loss: float, accuracy: float) -> None:
        """Remember an evaluation."""
        if self.best is None or self.protocol.reduce == "last" or loss > self.best[0]:
            self.best = loss, accuracy

    def result(self, pruned: bool = False) -> LayerCriticality:
        """What was found."""
        assert self.best is not None
        loss, accuracy = self.best
        distance = float((self.weight - self.start).norm() / self.start.norm().clamp_min(1e-30))
        shape = tuple(self.start.shape)
        return LayerCriticality(self.name, shape, loss - self.base[0], loss, accuracy, distance, self.epoch, pruned)


def _one_by_one(
    problem: Problem,
    names: Sequence[str],
    base: tuple[float, float],
    kept: _Store,
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
    order, cache, cuts = list(names), None, {name: Cut(name, (), model) for name in names}
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
        pruned = _climb(problem, ascent, cut, inputs, first.get(name), limit if argmin_only else math.inf, progress)
        kept.add(ascent.result(pruned))
    return reason


def _climb(
    problem: Problem,
    ascent: Ascent,
    cut: Cut,
    inputs: Frontiers,
    first: Tensor | None,
    limit: float,
    progress: Callable[[str], None] | None,
) -> bool:
    """Search one layer to the end, or until its loss exceeds `limit`; whether that happened."""
    full_batch = problem.protocol.update == "full-batch"
    while not ascent.done:
        if full_batch and first is not None and ascent.epoch == 0:
            ascent.step(first)
        else:
            total: Tensor | None = None
            for number, index in enumerate(problem.batches(ascent.epoch)):
                if first is not None and ascent.epoch == number == 0:
                    ascent.step(first)
                    continue
                weight = ascent.weight.detach().requires_grad_()
                (grad,) = torch.autograd.grad(problem.loss(cut.logits(weight, inputs(index)), index), weight)
                if not full_batch:
                    ascent.step(grad)
                else:
                    total = grad if total is None else total + grad
            if total is not None:
                ascent.step(total)
        if ascent.end_epoch():
            ascent.record(*problem.evaluate(lambda index: cut.logits(ascent.weight, inputs(index))))
        if progress:
            progress(ascent.name)
        if not ascent.done and ascent.best is not None and ascent.best[0] > limit:
            return True
    return False


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


class _Store:
    """Finished layers, in a file if there is one."""

    def __init__(self, path: Path | None, problem: Problem, argmin_only: bool) -> None:
        self.path = path
        self.rows: dict[str, LayerCriticality] = {}
        if path is None:
            return
        self.identity = {
            "weights": _digest(problem.model.state_dict().values()),
            "images": _digest([problem.x, problem.y]),
            "protocol": asdict(problem.protocol),
            "seed": problem.streams.seed,
            "shuffle": problem.shuffle,
            "argmin_only": argmin_only,
        }
        if path.is_file():
            self._read(path)

    def add(self, row: LayerCriticality) -> None:
        """Keep a layer."""
        self.rows[row.layer] = row
        if self.path is not None:
            rows = [asdict(one) for one in self.rows.values()]
            write_json(self.path, {"identity": self.identity, "layers": rows})

    def _read(self, path: Path) -> None:
        hint = "delete it, or name another file"
        try:
            content = json.loads(path.read_text())
            different = differences(content["identity"], self.identity)
            rows = [LayerCriticality(**{**row, "shape": tuple(row["shape"])}) for row in content["layers"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is no record of a search for criticality: {error!r}", hint=hint) from None
        if different:
            raise RunError(f"{path} belongs to another search: {'; '.join(different)}", hint=hint)
        self.rows = {row.layer: replace(row) for row in rows}


def _digest(tensors: Any) -> str:
    """A short hash of tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
