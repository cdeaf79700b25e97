"""The recipe: a training method as a frozen value, and the three ways to search the worst case of a batch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import torch

from gambeson.attacks.margin import MMA
from gambeson.attacks.pgd import PGD, Plain
from gambeson.core.errors import InputError, require_known
from gambeson.core.losses import ce
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.parameters import applied, layer_weights
from gambeson.core.processes import summed, weighted
from gambeson.core.threat import L2, Linf
from gambeson.core.types import Adversary, Batch, Rng
from gambeson.parts.averaging import EMA
from gambeson.parts.budgets import PixelBudget
from gambeson.parts.memory import CarriedPerturbation
from gambeson.parts.objectives import Objective
from gambeson.parts.penalties import GradientAlignment
from gambeson.parts.weight_perturbation import WeightPerturbation

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """Everything that makes a training method, without tensors and without state.

    Args:
        threat: What the adversary may do; also the threat of validation and of the sentinel.
        objective: What is minimised at the worst case.
        attack: How the images of the view `"adv"` are found; None for methods without it.
        weight_perturbation: Perturbation of the weights, or None.
        inner: Order of the search. `"inputs-first"`: images, then weights for those images (AWP). `"joint"`: one
            backward gives the gradients for both (LAP). `"weights-first"`: weights, then images at the perturbed
            weights (LAP-A). `"carried"`: the perturbation of the last step is this step's adversary, and the training
            backward moves it (Free).
        penalty: Added to the mean loss; or None.
        parts: Stateful parts, by their specs. Budgets change the threat of a batch in the order of the tuple.
        replays: Consecutive steps on the same batch.
        trainable: Names of the parameters that training changes; None for all.
        bn: BatchNorm in training: `"update"`: batch statistics, and the running ones move; `"frozen"`: the running
            statistics normalise and stay.

    Raises:
        InputError: The settings do not go together.
    """

    threat: Linf | L2
    objective: Objective
    attack: PGD | MMA | None = None
    weight_perturbation: WeightPerturbation | None = None
    inner: Literal["inputs-first", "joint", "weights-first", "carried"] = "inputs-first"
    penalty: GradientAlignment | None = None
    parts: tuple[EMA | CarriedPerturbation | PixelBudget, ...] = ()
    replays: int = 1
    trainable: tuple[str, ...] | None = None
    bn: Literal["update", "frozen"] = "update"

    def __repr__(self) -> str:
        # A checkpoint is compared by it: without the later fields where they are not used, as in older checkpoints.
        shown = [f for f in fields(self) if f.name not in ("trainable", "bn") or getattr(self, f.name) != f.default]
        return f"Recipe({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def __post_init__(self) -> None:
        require_known("BatchNorm mode of training", self.bn, ("update", "frozen"))
        if self.trainable is not None and not self.trainable:
            raise InputError("a recipe that trains nothing has no step to make", hint="name at least one parameter")
        carried = [part for part in self.parts if isinstance(part, CarriedPerturbation)]
        if self.inner not in ("inputs-first", "joint", "weights-first", "carried"):
            raise InputError(f"unknown inner search {self.inner!r}")
        if (self.inner == "carried") != (len(carried) == 1):
            raise InputError("inner='carried' goes with exactly one CarriedPerturbation among the parts")
        if self.inner == "carried" and (self.attack or self.weight_perturbation or self.penalty):
            raise InputError("a carried perturbation replaces attack, weight perturbation and penalty")
        if "adv" in self.objective.views and self.attack is None and self.inner != "carried":
            raise InputError(f"{type(self.objective).__name__} needs adversarial images, but the recipe has no attack")
        if self.inner in ("joint", "weights-first"):
            attack = self.attack
            if self.weight_perturbation is None or attack is None:
                raise InputError(f"inner={self.inner!r} needs an attack and a weight perturbation")
            if not (
                isinstance(attack, PGD)
                and attack.loss == "ce"
                and isinstance(attack.gradient, Plain)
                and attack.steps == attack.restarts == 1
            ):
                raise InputError(
                    f"inner={self.inner!r} shares one cross-entropy backward: it needs a plain one-step attack"
                )
        for part in self.parts:
            if isinstance(part, PixelBudget):
                self._check_budget(part)
        if self.replays < 1:
            raise InputError(f"replays must be at least 1, got {self.replays}")

    def _check_budget(self, part: PixelBudget) -> None:
        if not isinstance(self.threat, Linf):
            raise InputError(f"a budget per pixel needs the threat Linf, got {self.threat.norm}")
        if isinstance(self.threat.eps, (int, float)) and part.eps_low > self.threat.eps:
            raise InputError(
                f"eps_low must not exceed eps, got {part.eps_low:.4g} and {self.threat.eps:.4g}",
                hint="eps is the budget of the pixels in the mask, eps_low that of the others",
            )
        if self.inner == "carried":
            raise InputError("a carried perturbation kept to the budgets of the batch before: they do not go together")
        if self.attack is None:
            raise InputError("a budget per pixel needs an attack, and this recipe has none")
        if isinstance(self.attack, PGD) and not self.attack.project:
            raise InputError("a budget per pixel needs an attack that projects; with project=False it bounds nothing")

    @property
    def adversarial(self) -> bool:
        """Whether training meets an adversary of the images; without one there is little robustness to select by."""
        return self.inner == "carried" or self.attack is not None

    @property
    def single_step(self) -> bool:
        """Whether the images are found with one gradient: such methods can overfit catastrophically."""
        return self.inner == "carried" or (self.attack is not None and self.attack.steps == 1)


def search(
    net: nn.Module,
    batch: Batch,
    recipe: Recipe,
    optimizer: Optimizer,
    rng: Rng,
    epoch: int,
    threat: Linf | L2 | None = None,
) -> Adversary:
    """The worst case of a batch: images and, where the recipe has one, a weight perturbation.

    The model's weights, flags and modes are as before; BatchNorm statistics move as `attack.bn` says. `threat` is what
    the recipe's budgets made of its threat for this batch; None takes the recipe's own. Processes that share a step
    come to the same perturbation of the weights.
    """
    threat = recipe.threat if threat is None else threat
    attack, perturbation = recipe.attack, recipe.weight_perturbation
    if perturbation is None or epoch < perturbation.warmup:
        return Adversary(_images(net, batch, recipe, threat, rng), {})
    if not isinstance(attack, PGD) or recipe.inner == "inputs-first":
        return _inputs_first(net, batch, recipe, threat, perturbation, optimizer, rng)
    inner = {"joint": _joint, "weights-first": _weights_first}[recipe.inner]
    return inner(net, batch, threat, attack, perturbation, optimizer, rng)


def _images(net: nn.Module, batch: Batch, recipe: Recipe, threat: Linf | L2, rng: Rng) -> Tensor:
    return batch.x if recipe.attack is None else recipe.attack(net, batch, threat, rng("attack"))


def _inputs_first(
    net: nn.Module,
    batch: Batch,
    recipe: Recipe,
    threat: Linf | L2,
    wp: WeightPerturbation,
    optimizer: Optimizer,
    rng: Rng,
) -> Adversary:
    x_adv = _images(net, batch, recipe, threat, rng)
    images, weights = {"clean": batch.x, "adv": x_adv}, layer_weights(net)
    with batch_norm(net, "batch"):  # the release ascends on a copy, whose statistics are thrown away
        logits: dict[str, Tensor] = {view: net(images[view]) for view in dict.fromkeys(recipe.objective.views)}
    loss = weighted(recipe.objective(logits, batch.y).mean(), batch.share)
    grads = summed(torch.autograd.grad(loss, list(weights.values())), batch.share)
    return Adversary(x_adv, wp.from_grads(weights, grads, optimizer, rng("weights")))


def _joint(
    net: nn.Module, batch: Batch, threat: Linf | L2, attack: PGD, wp: WeightPerturbation, optimizer: Optimizer, rng: Rng
) -> Adversary:
    start, weights = attack.begin(batch.x, threat, rng("attack")).requires_grad_(), layer_weights(net)
    with batch_norm(net, attack.bn):
        loss = weighted(ce(net(start), batch.y).mean(), batch.share)
    grad, *grads = torch.autograd.grad(loss, [start, *weights.values()])
    x_adv = attack.move(start.detach(), grad, batch.x, threat)
    grads = summed(grads, batch.share)
    return Adversary(x_adv, wp.from_grads(weights, grads, optimizer, rng("weights")))


def _weights_first(
    net: nn.Module, batch: Batch, threat: Linf | L2, attack: PGD, wp: WeightPerturbation, optimizer: Optimizer, rng: Rng
) -> Adversary:
    start, weights = attack.begin(batch.x, threat, rng("attack")), layer_weights(net)
    with batch_norm(net, attack.bn):
        loss = weighted(ce(net(start), batch.y).mean(), batch.share)
    grads = summed(torch.autograd.grad(loss, list(weights.values())), batch.share)
    v = wp.from_grads(weights, grads, optimizer, rng("weights"))
    start = start.requires_grad_()
    with applied(net, v), frozen(net), batch_norm(net, attack.bn):
        grad = torch.autograd.grad(ce(net(start), batch.y).sum(), start)[0]
    return Adversary(attack.move(start.detach(), grad, batch.x, threat), v)
