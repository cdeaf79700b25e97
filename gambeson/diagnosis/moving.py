"""Moving the weights of some layers, up the gradient or at random, and measuring what loss and accuracy do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gambeson.core.errors import InputError, UnhealthyError, require_known
from gambeson.core.losses import ce
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.parameters import applied, layer_weights
from gambeson.core.threat import Threat
from gambeson.diagnosis.groups import short
from gambeson.diagnosis.prefixes import Frontiers, PrefixCache
from gambeson.diagnosis.probes import attacked_images, batches, random_direction
from gambeson.diagnosis.response import RHOS, Kind, Moved, Response, Strategy
from gambeson.diagnosis.suffix import Cut, Graph
from gambeson.evaluation.preflight import preflight
from gambeson.parts.weight_perturbation import of_relative_norm


def measure_response(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    groups: Mapping[str, Sequence[str]],
    *,
    num_classes: int,
    inputs: Sequence[str] = ("clean", "fgsm", "pgd-10"),
    kinds: Sequence[Kind] = ("adversarial", "random"),
    rhos: Sequence[float] = RHOS,
    remake: bool = False,
    strategy: Strategy = "cached",
    batch_size: int = 256,
    seed: int = 0,
    memory: int = 4 * 2**30,
    progress: Callable[[], None] | None = None,
) -> Response:
    """Move the weights of some layers and measure loss and accuracy on clean images and on those of attacks.

    Every weight w of a group becomes `w + v`, all others stay. With g the gradient of the mean cross-entropy on the
    same images at the model's own weights, and d a Gaussian direction:

        adversarial:  v = rho |w| g / |g|          one step up, as AWP and LAP perturb (Euclidean norms, whole tensor)
        random:       v = rho (|w_f| / |d_f|) d_f  for every filter f; |v| = rho |w| too

    A weight whose gradient is zero is not moved. The images are made once, by attacks on the model as it is, and stay;
    with `remake` they are made again for every move, with the same random starts. PGD makes all its steps, also on
    images that are misclassified: at rho 0 its accuracy is that of the last iterate. BatchNorm has its running
    statistics. What a layer's weight cannot change is computed once and kept (`cached`); `naive` runs the whole network
    for every move and gives the same bits on the CPU in float32.

    Args:
        model: Maps images in [0, 1] to logits; its weights come back bit for bit.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)` in `[0, num_classes)`.
        threat: Ball of the attacks.
        groups: Names of weights by group, see `gambeson.diagnosis.groups`; a single layer under its own name.
        num_classes: Number of classes.
        inputs: On which images: `clean`, or names for `parse_attack`.
        kinds: Which ways.
        rhos: How far, as shares of the norm of every weight, at least 0.
        remake: Attack every moved model.
        strategy: See above; remade images go through the whole network in any case.
        batch_size: Images at a time.
        seed: Seed of the random directions, which are those of `weight_landscape`, and of the attacks.
        memory: Bytes for values that are kept.
        progress: Called after every move on every set of images.

    Returns:
        The response.

    Raises:
        InputError: What `evaluate` refuses, unknown weights, images, ways or strategies, no groups, images, ways or
            sizes, a negative size, or a loss or gradient that is not finite at the model's own weights.

    References:
        Wu, Xia, Wang, "Adversarial weight perturbation helps robust generalization", NeurIPS 2020,
        https://arxiv.org/abs/2004.05884 (the rule); Lin, Yu, Han, Su, Liu, "Layer-aware analysis of catastrophic
        overfitting: revealing the pseudo-robust shortcut dependency", ICML 2024, https://arxiv.org/abs/2405.16262
        (former layers respond earlier and more); Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018,
        https://arxiv.org/abs/1712.09913 (filter normalisation).

    Departures:
        LAP's release moves down the loss, with momentum and weight decay in the direction (utils.py:26-46, LAP.py:123);
        this is the plain gradient, upwards, as in AWP. How the paper measured its analysis of layers is not published.
    """
    own = layer_weights(model)
    missing = [name for names in groups.values() for name in names if name not in own]
    if missing:
        raise InputError(f"the model has no weights {', '.join(dict.fromkeys(missing))}")
    if not groups or not all(groups.values()) or not inputs or not kinds or not rhos:
        raise InputError("a response needs groups of layers, images, ways and sizes")
    for kind in kinds:
        require_known("kind", kind, get_args(Kind))
    require_known("strategy", strategy, get_args(Strategy))
    if not all(0 <= rho < math.inf for rho in rhos):
        raise InputError(f"rho is a share of the norm of a weight, at least 0, got {list(rhos)}", hint="0.01 is 1 %")
    preflight(model, x, y, threat, ("ce",), num_classes=num_classes, batch_size=batch_size)
    attacks: dict[str, Any] = {"freeze_fooled": False, "batch_size": batch_size, "seed": seed}
    names = list(dict.fromkeys(name for one in groups.values() for name in one))
    noise = {name: random_direction(own[name].detach(), name, seed=seed) for name in names if "random" in kinds}
    whole: dict[str, Moved] = {}
    found: dict[tuple[str, str, Kind, float], Moved] = {}
    with frozen(model), batch_norm(model, "running"):
        graph = Graph(model, attacked_images(model, x[:1], y[:1], "clean", threat))
        cuts = _cuts(graph, groups, strategy)
        for of in inputs:
            probe = _Probe(model, attacked_images(model, x, y, of, threat, **attacks), y, batch_size)
            whole[of] = Moved("none", kinds[0], 0.0, of, *probe.outcome())
            if not bool(whole[of].loss.isfinite().all()):
                raise UnhealthyError(f"the loss on {of} images is not finite with the model's own weights")
            grads = probe.gradients(names) if "adversarial" in kinds else {}
            if broken := [name for name, grad in grads.items() if not bool(grad.isfinite().all())]:
                raise UnhealthyError(f"the gradient on {of} images is not finite for {', '.join(broken)}")
            cache = PrefixCache(graph, probe.x, list(cuts.values()), batch_size, memory)
            for group, cut in cuts.items():
                start = cache.advance(cut)
                for kind, rho in product(kinds, rhos):
                    v = {
                        name: of_relative_norm(grads[name], own[name].detach(), rho)
                        if kind == "adversarial"
                        else rho * noise[name]
                        for name in groups[group]
                    }
                    with applied(model, v):
                        if remake and of != "clean":
                            again = attacked_images(model, x, y, of, threat, **attacks)
                            outcome = _Probe(model, again, y, batch_size).outcome()
                        else:
                            outcome = probe.outcome(*start)
                    found[of, group, kind, rho] = Moved(group, kind, rho, of, *outcome)
                    if progress:
                        progress()
    moves = tuple(found[key] for key in product(inputs, groups, kinds, rhos))
    settings = {
        "inputs": list(inputs),
        "kinds": list(kinds),
        "rhos": list(rhos),
        "remake": remake,
        "norm": threat.norm,
        "eps": float(threat.eps),
        "strategy": strategy,
        "batch_size": batch_size,
        "seed": seed,
    }
    of_groups = {group: tuple(weights) for group, weights in groups.items()}
    return Response(of_groups, whole, moves, settings, graph.reason)


def _cuts(graph: Graph, groups: Mapping[str, Sequence[str]], strategy: Strategy) -> dict[str, Cut]:
    """Where the model is cut for every group, from the first layers to the last."""
    layers = {group: [short(name) for name in names] for group, names in groups.items()}
    if strategy == "naive":
        return {group: Cut(tuple(names), (), graph.model) for group, names in layers.items()}
    order = sorted(layers, key=lambda group: min(map(graph.position, layers[group])))
    return {group: graph.cut(*layers[group]) for group in order}


class _Probe:
    """Images on which a model is measured with the weights that it has at that moment."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> None:
        self.model, self.x, self.y, self.batch_size = model, x, y.to(x.device, torch.int64), batch_size

    def outcome(self, cut: Cut | None = None, at: Frontiers | None = None) -> tuple[Tensor, Tensor]:
        """Losses and correctness `(N,)` of all images, on the CPU, from a cut on or of the whole model."""
        losses, correct = [], []
        with torch.no_grad():
            for part in batches(len(self.y), self.batch_size):
                logits = cut.run(at(part)) if cut and at else self.model(self.x[part])
                loss = ce(logits, self.y[part]).double()
                losses.append(torch.where(loss.isfinite(), loss, math.inf))
                correct.append((logits.argmax(1) == self.y[part]) & logits.isfinite().all(1))
        return torch.cat(losses).cpu(), torch.cat(correct).cpu()

    def gradients(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The gradient of the mean cross-entropy for some weights, all from one backward per batch."""
        weights = {name: self.model.get_parameter(name).detach().requires_grad_() for name in names}
        total: dict[str, Tensor] = {}
        for part in batches(len(self.y), self.batch_size):
            loss = ce(functional_call(self.model, weights, (self.x[part],)), self.y[part]).sum() / len(self.y)
            if not loss.requires_grad:  # the forward uses none of them
                return {name: torch.zeros_like(weight) for name, weight in weights.items()}
            grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
            total = {name: total[name] + grad if total else grad for name, grad in zip(names, grads, strict=True)}
        return total
