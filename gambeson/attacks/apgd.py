"""Auto-PGD: gradient ascent with momentum that halves its step where it stops helping, for any loss of the logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import torch

from gambeson.attacks.attack import LogitLoss, input_gradient, per_image, require
from gambeson.attacks.search import Forward, Jobs, State, noise, select, targets_of
from gambeson.attacks.starts import boundary
from gambeson.core.errors import require_known
from gambeson.core.losses import ce, dlr, margin, targeted_dlr, targeted_margin
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.threat import Threat, box

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gambeson.core.streams import Streams


class Ascent(NamedTuple):
    """Where an ascent came, all detached and still on the device.

    Attributes:
        x_best: The image of the highest loss, shape `(N, C, H, W)`.
        loss_best: That loss, shape `(N,)`.
        x_adv: The last misclassified image that was met, the start included; the clean image where there was none.
        fooled: Whether a misclassified image was met, bool `(N,)`.
    """

    x_best: Tensor
    loss_best: Tensor
    x_adv: Tensor
    fooled: Tensor


def apgd(
    model: nn.Module, x: Tensor, y: Tensor, loss: LogitLoss, start: Tensor, threat: Threat, *, steps: int
) -> Ascent:
    """Ascend `loss` from `start` by Auto-PGD.

    From step size `eta = 2 eps` on, with `P` the projection onto ball and box:

        z = P(x_t + eta * ascend(grad loss(x_t)))
        x_{t+1} = P(x_t + 3/4 (z - x_t) + 1/4 (x_t - x_{t-1})),   x_1 = P(z)

    Checkpoints come after 22 % of the steps, then in intervals that each time are shorter by 3 % of the steps, down to
    6 %. There `eta` is halved, and the ascent goes back to the best point, for every example whose loss rose in at most
    3/4 of the steps since the last checkpoint, or whose best loss has not moved since a last checkpoint that did not
    halve its step.

    The loop leaves the device alone: nothing is transferred between the steps. The model is in evaluation mode inside
    and as before afterwards.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Clean images `(N, C, H, W)`.
        y: Labels `(N,)`, to see what is misclassified.
        loss: What is maximised: logits `(N, K)` to `(N,)`.
        start: The first point, inside the ball; `gambeson.attacks.Boundary()` is the published one.
        threat: The ball; `Linf` with any budget, or `L2`.
        steps: Number of steps, each with one forward and one backward, besides those at the start.

    Returns:
        The best and the adversarial images.

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        ICML 2020, https://arxiv.org/abs/2003.01690; code: https://github.com/fra31/auto-attack
    Departures:
        None from the release's `attack_single_run` (autopgd_base.py), up to rounding. Where that differs from the
        paper, the release counts: the first step is a rise if its loss is above zero, not above the loss at the start;
        exactly 3/4 of rises halve too; the adversarial image is the last one that was met, not the one of the highest
        loss.
    """
    with frozen(model), batch_norm(model, "running"):
        state = _begin(x, y, start, steps)
        for _ in range(steps + 1):
            _advance(state, *input_gradient(model, loss, state["at"]), threat, steps)
    return Ascent(state["x_best"], state["loss_best"], state["x_adv"], state["fooled"])


Loss = Literal["ce", "dlr", "margin", "dlr-targeted", "margin-targeted"]
"""What an `AutoPGD` ascends; the targeted ones once for every target."""

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": ce, "dlr": dlr, "margin": margin}
_TARGETED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dlr-targeted": targeted_dlr,
    "margin-targeted": targeted_margin,
}


@dataclass(frozen=True, kw_only=True)
class AutoPGD:
    """Auto-PGD as a `Search`: APGD-CE, APGD-DLR and APGD-T of AutoAttack, see `apgd` for the ascent.

    A round is an ascent from a start of its own on the boundary of the ball. The targets of the targeted losses are the
    classes of the largest clean logits, the true class excluded, the nearest first.

    Args:
        loss: `"ce"`, `"dlr"` or `"margin"`; or `"dlr-targeted"` or `"margin-targeted"`, towards one target per round.
        steps: Steps of every ascent.
        restarts: Ascents, for every target.
        targets: Targets of a targeted loss; all wrong classes where there are fewer.
        eot: Forwards over which every gradient is averaged, for randomised models; the last one says whether the image
            is misclassified.

    Raises:
        InputError: A setting out of range.

    References:
        Croce, Hein, as for `apgd`.
    Departures:
        The release draws the starts for the whole batch from one generator; here every example has a stream of its
        own, so that a start does not depend on which others are attacked. Where there are too few classes for a ratio
        of logits (three for DLR, four for its targeted form), where the release fails, the loss is the margin itself:
        the ascent only sees its sign and where it rises.
    """

    loss: Loss = "ce"
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    eot: int = 1

    def __post_init__(self) -> None:
        require_known("loss", self.loss, get_args(Loss))
        for name, value in (("steps", self.steps), ("restarts", self.restarts), ("targets", self.targets)):
            require(value >= 1, f"Auto-PGD needs {name} >= 1", value)
        require(self.eot >= 1, "Auto-PGD averages over at least 1 forward", self.eot)

    @property
    def name(self) -> str:
        """`apgd-ce`, `apgd-dlr`, `apgd-margin`, `apgd-t` or `apgd-margin-t`."""
        return {"dlr-targeted": "apgd-t", "margin-targeted": "apgd-margin-t"}.get(self.loss, f"apgd-{self.loss}")

    @property
    def length(self) -> int:
        """Steps, and the look at the last point."""
        return self.steps + 1

    def rounds(self, num_classes: int) -> int:
        """Restarts, for every target of a targeted loss."""
        return self.restarts * (min(self.targets, num_classes - 1) if self.loss in _TARGETED else 1)

    def begin(self, jobs: Jobs, threat: Threat, streams: Streams) -> State:
        """Starts on the boundary of the ball."""
        linf = threat.norm == "Linf"
        start = boundary(jobs.x, threat, noise(jobs, self.name, streams, torch.rand if linf else torch.randn))
        state = _begin(jobs.x, jobs.y, start, self.steps)
        if self.loss in _TARGETED:
            state["target"] = targets_of(jobs, self.restarts)
        return state

    def step(self, model: Forward, state: State, threat: Threat) -> None:
        """One gradient, and one step."""

        def loss(logits: Tensor) -> Tensor:
            few = logits.shape[1] < (4 if self.loss == "dlr-targeted" else 3)
            if self.loss in _TARGETED:
                return (targeted_margin if few else _TARGETED[self.loss])(logits, state["y"], state["target"])
            return (margin if few and self.loss == "dlr" else _LOSSES[self.loss])(logits, state["y"])

        grad, logits, values = input_gradient(model, loss, state["at"])
        for _ in range(self.eot - 1):
            more, logits, values = input_gradient(model, loss, state["at"])
            grad = grad + more
        _advance(state, grad / self.eot if self.eot > 1 else grad, logits, values, threat, self.steps)


def _windows(steps: int) -> tuple[int, int, int]:
    """Steps to the first checkpoint, by how many each interval is shorter, and the shortest interval."""
    first, shorter, shortest = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    return first, shorter, shortest


def _begin(x: Tensor, y: Tensor, start: Tensor, steps: int) -> State:
    """The state of an ascent before the gradient at its start is known."""
    n, start = len(x), start.detach()
    no, yes = x.new_zeros(n, dtype=torch.bool), x.new_ones(n, dtype=torch.bool)
    zero, count = x.new_zeros(n), x.new_zeros(n, dtype=torch.int64)
    return {
        "x": x,
        "y": y,
        "x_adv": x,
        "fooled": no,
        "ended": no,
        "at": start,
        "before": start,
        "taken": count,  # steps
        "x_best": start,
        "grad_best": torch.zeros_like(x),
        "loss_best": zero,
        "scale": zero + 2,  # the step size in budgets
        "previous": zero,
        "rises": zero,
        "loss_checked": zero,
        "halved": yes,
        "window": count + _windows(steps)[0],
        "left": count + _windows(steps)[0],
    }


def _advance(s: State, grad: Tensor, logits: Tensor, values: Tensor, threat: Threat, steps: int) -> None:
    """What the gradient, the logits and the losses at `s["at"]` mean for every row, and its step to the next point."""
    _, shorter, shortest = _windows(steps)
    x, at = s["x"], s["at"]
    begun = s["taken"] > 0
    wrong = logits.argmax(1) != s["y"]
    s["x_adv"], s["fooled"] = select(wrong, at, s["x_adv"]), s["fooled"] | wrong

    better = ~begun | (values > s["loss_best"])
    s["x_best"], s["grad_best"] = select(better, at, s["x_best"]), select(better, grad, s["grad_best"])
    s["loss_best"] = select(better, values, s["loss_best"])
    s["loss_checked"] = select(begun, s["loss_checked"], values)
    s["rises"] = s["rises"] + (begun & (values > s["previous"]))
    s["previous"] = select(begun, values, s["previous"])

    s["left"] = s["left"] - begun.to(torch.int64)
    check = s["left"] == 0
    halve = check & ((s["rises"] <= 0.75 * s["window"]) | (~s["halved"] & (s["loss_checked"] >= s["loss_best"])))
    s["scale"] = select(halve, s["scale"] / 2, s["scale"])
    at, grad = select(halve, s["x_best"], at), select(halve, s["grad_best"], grad)
    s["halved"] = select(check, halve, s["halved"])
    s["loss_checked"] = select(check, s["loss_best"], s["loss_checked"])
    s["rises"] = s["rises"].masked_fill(check, 0)
    s["window"] = select(check, (s["window"] - shorter).clamp_min(shortest), s["window"])
    s["left"] = select(check, s["window"], s["left"])

    pull = per_image(torch.where(begun, 0.75, 1.0).to(x.dtype), x)
    aim = box(threat.project(at + per_image(s["scale"], x) * threat.eps * threat.ascend(grad), x))
    moved = box(threat.project(at + pull * (aim - at) + (1 - pull) * (at - s["before"]), x))
    s["ended"] = s["taken"] >= steps
    s["before"], s["at"] = select(s["ended"], s["before"], at), select(s["ended"], at, moved)
    s["taken"] = s["taken"] + (~s["ended"]).to(torch.int64)
