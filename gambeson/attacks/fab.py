"""FAB, the fast adaptive boundary attack: steps along the decision boundary towards its point nearest to the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from gambeson.attacks.attack import input_gradient, per_image, require
from gambeson.attacks.projections import project_l2, project_linf
from gambeson.attacks.search import Forward, Jobs, State, noise, select, targets_of
from gambeson.attacks.starts import boundary
from gambeson.core.losses import targeted_margin
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.threat import box

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gambeson.core.streams import Streams
    from gambeson.core.threat import Threat


@dataclass(frozen=True, kw_only=True)
class FAB:
    """FAB as a `Search`: FAB-T of AutoAttack, which goes to one target class per round, or FAB without targets.

    A step linearises the model at `x_t`: towards the class `k` the boundary is the hyperplane

        z_k(x_t) - z_y(x_t) + <grad(z_k - z_y)(x_t), x - x_t> = 0.

    With targets, `k` is the target; without, the class whose hyperplane is nearest by `|z_k - z_y| / ||grad||_dual`.
    Let `d` and `d0` be the smallest steps in the norm of the threat from `x_t` and from the clean image `x_0` onto it
    inside [0, 1] (`project_linf`, `project_l2`). Then

        x_{t+1} = box((1 - a) (x_t + eta d) + a (x_0 + eta d0)),   a = min(||d|| / (||d|| + ||d0||), alpha_max)

    and where `x_{t+1}` is misclassified, it goes back to `x_0 + beta (x_{t+1} - x_0)`. The misclassified image with the
    smallest norm is kept. An example falls as soon as that norm is at most eps: it could only become smaller.

    The targets of an example are the classes of its largest clean logits, the true class excluded, the nearest first;
    the restarts of a target follow each other. The first restart begins at the clean image, others at a random point of
    the norm eps/2. An example that is misclassified without attack has the norm zero.

    Args:
        targeted: Towards one class after the other; otherwise towards the nearest boundary, with one backward per wrong
            class and step.
        steps: Steps of every round, each with a forward and a backward, and a forward for the label.
        restarts: Rounds, for every target.
        targets: Targets; all wrong classes where there are fewer.
        alpha_max: Largest weight of the clean image's projection, in [0, 1].
        eta: Overshoot behind the hyperplane, >= 1.
        beta: How much of the way from the clean image is left by a step back, in (0, 1).

    Raises:
        InputError: A setting out of range, a budget that is not the same for all pixels and examples, or one class.

    References:
        Croce, Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
        https://arxiv.org/abs/1907.02044; code: https://github.com/fra31/auto-attack
    Departures:
        From the release (autoattack/fab_base.py, fab_pt.py), none in the iterates but rounding; the paper's final
        search on the line from the image to the best point is left out there too. The release goes on to the last step
        with images that have fallen (fab_base.py, line 164) and leaves gradients in the parameters (fab_pt.py, line
        109); its starts are drawn for the whole batch from one generator (line 132), here every example has a stream
        of its own. Without targets the release goes backward once more, for the true class (fab_pt.py, line 84).
        Targets beyond the wrong classes are cut, where the release fails (line 113). See also `project_l2`.
    """

    targeted: bool = True
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        for name, value in (("steps", self.steps), ("restarts", self.restarts), ("targets", self.targets)):
            require(value >= 1, f"FAB needs {name} >= 1", value)
        require(0 <= self.alpha_max <= 1, "the alpha_max of FAB is a weight in [0, 1]", self.alpha_max)
        require(1 <= self.eta < float("inf"), "the eta of FAB is an overshoot, finite and >= 1", self.eta)
        require(0 < self.beta < 1, "the beta of FAB is a fraction in (0, 1)", self.beta)

    @property
    def name(self) -> str:
        """`fab-t` with targets, else `fab`."""
        return "fab-t" if self.targeted else "fab"

    @property
    def length(self) -> int:
        """Steps."""
        return self.steps

    def rounds(self, num_classes: int) -> int:
        """Restarts, for every target."""
        return self.restarts * (min(self.targets, num_classes - 1) if self.targeted else 1)

    def begin(self, jobs: Jobs, threat: Threat, streams: Streams) -> State:
        """The clean images, or random points half a budget away from them."""
        x, y = jobs.x, jobs.y
        require(jobs.logits.shape[1] >= 2, "FAB needs at least 2 classes", jobs.logits.shape[1])
        if not isinstance(threat.eps, (int, float)):
            require(threat.eps.ndim == 0, "FAB needs one budget for all", f"the shape {tuple(threat.eps.shape)}")
        start = x
        if self.restarts > 1:
            draw = noise(jobs, self.name, streams, torch.rand if threat.norm == "Linf" else torch.randn)
            start = select(jobs.round % self.restarts > 0, boundary(x, threat.with_eps(threat.eps / 2), draw), x)
        wrong = jobs.logits.argmax(1) != y
        state = {
            "x": x,
            "y": y,
            "x_adv": x,  # of the smallest norm
            "norm": torch.where(wrong, 0.0, torch.inf).to(x.dtype),
            "fooled": wrong,
            "ended": torch.zeros_like(wrong),
            "at": start,
            "taken": torch.zeros_like(y),  # steps
        }
        if self.targeted:
            state["target"] = targets_of(jobs, self.restarts)
        return state

    def step(self, model: Forward, state: State, threat: Threat) -> None:
        """One linearisation, two projections, and a look at the label."""
        s, x, at = state, state["x"], state["at"]
        stay = s["fooled"] | s["ended"]
        if self.targeted:
            w, _, lead = input_gradient(model, lambda logits: targeted_margin(logits, s["y"], s["target"]), at)
        else:
            w, lead = _nearest_boundary(model, at, s["y"], threat.norm)
        project = project_linf if threat.norm == "Linf" else project_l2
        both = torch.cat([at, x]).unflatten(0, (2, -1))
        delta = project(both, w, (w * at).flatten(1).sum(1) - lead)
        near, far = (threat.distance(d, torch.zeros_like(d)).clamp_min(1e-8) for d in delta)
        a = per_image((near / (near + far)).clamp_max(self.alpha_max), x)
        ahead = both + self.eta * delta
        moved = box((1 - a) * ahead[0] + a * ahead[1])

        with torch.no_grad():
            wrong = model(moved).argmax(1) != s["y"]
        norm = threat.distance(moved, x)
        # Nobody stays with a norm within eps unless its fall was taken back: then that image does not count.
        best = s["norm"].masked_fill(~stay & (s["norm"] <= threat.eps), torch.inf)
        better = ~stay & wrong & (norm < best)
        s["x_adv"], s["norm"] = select(better, moved, s["x_adv"]), torch.where(better, norm, best)
        s["fooled"] = s["fooled"] | (s["norm"] <= threat.eps)
        s["at"] = select(stay, at, select(wrong, x + self.beta * (moved - x), moved))
        s["taken"] = s["taken"] + (~stay).to(torch.int64)
        s["ended"] = s["taken"] >= self.steps


class Nearest(NamedTuple):
    """The nearest misclassified images that were found.

    Attributes:
        x_adv: Images `(N, C, H, W)`; the clean ones where none was found, and where they are misclassified themselves.
        norm: Their distances from the clean images `(N,)`; infinite where none was found.
    """

    x_adv: Tensor
    norm: Tensor


def fab_minimal(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, streams: Streams, *, attack: FAB | None = None
) -> Nearest:
    """The smallest perturbations that FAB finds, whatever their norm: all rounds, to the last step.

    Args:
        model: Maps images in [0, 1] to logits; evaluated in evaluation mode and as before afterwards.
        x: Clean images `(N, C, H, W)` in [0, 1].
        y: Labels `(N,)`.
        threat: The norm; its budget is only how far away restarts begin.
        streams: The randomness of the restarts.
        attack: The settings; `FAB()` by default.

    Returns:
        The images and their norms.

    References:
        Croce, Hein, as for `FAB`.
    """
    attack = attack or FAB()
    index, never = torch.arange(len(x), device=x.device), threat.with_map(x.new_zeros(()))
    found = Nearest(x, torch.full_like(x.flatten(1)[:, 0], torch.inf))
    with frozen(model), batch_norm(model, "running"):
        with torch.no_grad():
            logits = model(x)
        for turn in range(attack.rounds(logits.shape[1])):
            state = attack.begin(Jobs(x, y, logits, index, torch.full_like(y, turn)), threat, streams)
            for _ in range(attack.steps):
                attack.step(model, state, never)
            better = state["norm"] < found.norm
            found = Nearest(select(better, state["x_adv"], found.x_adv), torch.where(better, state["norm"], found.norm))
    return found


def _nearest_boundary(model: Callable[[Tensor], Tensor], at: Tensor, y: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Gradient and value of `z_k - z_y` for the class `k` whose linearised boundary is nearest in the norm."""
    at = at.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(at)
        classes = logits.shape[1]
        others = (y[:, None] + torch.arange(1, classes, device=y.device)) % classes
        leads = logits.gather(1, others) - logits.gather(1, y[:, None])
        sums = leads.sum(0).unbind()
    values = leads.detach().unbind(1)
    nearest, w, lead = torch.full_like(values[0], torch.inf), torch.zeros_like(at), torch.zeros_like(values[0])
    for k, value in enumerate(values):
        grad = torch.autograd.grad(sums[k], at, retain_graph=k < classes - 2)[0]
        dual = grad.flatten(1).abs().sum(1) if norm == "Linf" else grad.flatten(1).norm(dim=1)
        distance = value.abs() / (dual + 1e-12)
        nearer = distance < nearest
        nearest, lead, w = (select(nearer, a, b) for a, b in ((distance, nearest), (value, lead), (grad, w)))
    return w, lead
