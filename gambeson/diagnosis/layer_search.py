"""The search for the worst weights of one layer, and the images on which it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from gambeson.core.losses import ce
from gambeson.core.streams import Streams
from gambeson.diagnosis.mrc import MRC, LayerCriticality
from gambeson.diagnosis.prefixes import Frontiers
from gambeson.diagnosis.suffix import Cut, critical_layers


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


def climb(
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
