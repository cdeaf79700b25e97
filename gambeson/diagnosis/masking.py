"""Gradient masking: do attacks that follow the gradient measure the model, or only that its gradient is of no use?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.attacks.pgd import fgsm
from gambeson.core.errors import InputError, UnhealthyError
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.diagnosis import masking_checks as checks
from gambeson.diagnosis.masking_checks import Evidence, Verdict
from gambeson.diagnosis.subject import Attached, Subject
from gambeson.evaluation.doctor import IMAGES, examine, kept
from gambeson.evaluation.finding import require_healthy
from gambeson.evaluation.statistics import Interval, wilson

CHECKS: dict[str, str] = {
    "images": "enough images: a sign that 5 % of them show is not missed",
    "zero gradient (ce)": "the gradient of the cross-entropy is there (tolerated: missing at 10 % of the images)",
    "zero gradient (dlr)": "the same of the difference of logits ratio",
    "zero gradient (margin)": "the same of the margin",
    "gradient direction": "a step along the gradient beats ten random ones (tolerated: not at 10 % of the images)",
    "more steps": "PGD with more steps is not weaker, and 160 steps fool little more than 40 (tolerated: 2 points)",
    "single step": "FGSM fools at least half of what PGD fools",
    "logit scale": "PGD is not stronger on rescaled logits (tolerated: 5 points of accuracy)",
    "unbounded budget": "with a budget that makes all images grey, all fall but those of the class of grey",
    "second opinion (mm3)": "minimum margin finds little that PGD does not (tolerated: 10 points of accuracy)",
    "second opinion (md)": "the same of margin decomposition",
    "black box": "Square does not fool what gradient attacks do not (tolerated: 1 point of accuracy)",
    "transfer": "images made against a second model do not either (tolerated: 1 point); only where one is given",
    "randomness": "the mean of several forwards has no better gradient than one (tolerated: 5 points of accuracy)",
}
"""What a model without masked gradients does, by the name of the check, in the order in which they are made."""


@dataclass(frozen=True, eq=False)
class Masking:
    """The verdict on a model's gradients.

    Attributes:
        evidence: One per check.
        outcomes: By attack, whether each example is correct under it, bool `(N,)`; wrong without attack is wrong.
        y: Labels `(N,)`.
        settings: What was run, for the record.
    """

    evidence: tuple[Evidence, ...]
    outcomes: Mapping[str, Tensor]
    y: Tensor
    settings: Mapping[str, Any]

    @property
    def verdict(self) -> Verdict:
        """The worst of all checks."""
        found = {one.verdict for one in self.evidence}
        return "FAIL" if "FAIL" in found else "WARN" if "WARN" in found else "PASS"

    def of(self, check: str) -> Evidence:
        """The evidence of a check.

        Raises:
            InputError: It was not made.
        """
        for one in self.evidence:
            if one.check == check:
                return one
        raise InputError(f"no check {check!r} was made", hint=f"made: {', '.join(e.check for e in self.evidence)}")

    def accuracy(self, attack: str) -> Interval:
        """Accuracy under an attack with its Wilson 95 % interval."""
        correct = self.outcomes[attack]
        return wilson(int(correct.sum()), len(correct))

    def worst(self) -> Interval:
        """Accuracy under all attacks together, example by example: an upper bound of the robust accuracy."""
        correct = torch.stack(list(self.outcomes.values())).all(0)
        return wilson(int(correct.sum()), len(correct))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the outcomes, for JSON."""
        return {
            "verdict": self.verdict,
            **self.settings,
            "n": len(self.y),
            "evidence": [asdict(one) for one in self.evidence],
            "accuracy": {name: vars(self.accuracy(name)) for name in self.outcomes},
            "worst": vars(self.worst()),
        }


def diagnose_masking(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    num_classes: int,
    transfer: nn.Module | None = None,
    queries: int = 1000,
    steps: tuple[int, int, int] = (10, 40, 160),
    eot: int = 20,
    batch_size: int = 256,
    seed: int = 0,
    listen: Callable[[Evidence], None] | None = None,
) -> Masking:
    """Look for signs that the gradients of `model` mislead attacks, so that a robust accuracy would be too high.

    Examples that are wrong without attack are not attacked. A check compares, example by example, an attack that one
    would believe with one that has no need of what may be masked, or looks at the gradient itself; `CHECKS` says what
    each expects. What counts is a share of all examples (of the correct ones where it is about gradients): the verdict
    is FAIL where its whole Wilson 95 % interval is above what is tolerated, WARN where the share itself is. A
    randomised model gets at least a WARN; an image counts as wrong there where most of 11 forwards are.

    PASS is no proof: it says that these attacks found nothing. A FAIL of `single step` alone means that the accuracy
    under FGSM is worthless, not the one under PGD.

    Args:
        model: Maps images in [0, 1] to logits; evaluated in evaluation mode and as before afterwards.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)` in `[0, num_classes)`.
        threat: Ball of the attacks, one budget for all.
        num_classes: Number of classes.
        transfer: A second model, against which images are made that this one is to classify.
        queries: Queries of Square.
        steps: After how many steps PGD is looked at, ascending; its step is eps/4.
        eot: Forwards over which the gradient of a randomised model is averaged.
        batch_size: Images at a time.
        seed: Seed of all random draws.
        listen: Called with the evidence of every check.

    Returns:
        The verdict, on the CPU.

    Raises:
        InputError: What `evaluate` refuses, except a missing gradient; no example is correct; steps that do not ascend.

    References:
        Athalye, Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
        https://arxiv.org/abs/1802.00420; Carlini et al., "On evaluating adversarial robustness", 2019,
        https://arxiv.org/abs/1902.06705; Tramèr, Kurakin, Papernot, Goodfellow, Boneh, McDaniel, "Ensemble adversarial
        training: attacks and defenses", ICLR 2018, https://arxiv.org/abs/1705.07204 (models that mask the gradient at
        the image); Carlini, Wagner, "Defensive distillation is not robust to adversarial examples", 2016,
        https://arxiv.org/abs/1607.04311 (scale of the logits); Jiang et al., "Imbalanced gradients", Machine Learning
        2023, https://arxiv.org/abs/2006.13726; Pintor et al., "Indicators of attack failure", NeurIPS 2022,
        https://arxiv.org/abs/2106.09947.
    """
    if not isinstance(threat.eps, (int, float)):
        raise InputError("a diagnosis of masking takes one budget for all examples, got a tensor")
    if not 1 <= steps[0] < steps[1] < steps[2]:
        raise InputError(f"the steps at which PGD is looked at must ascend from at least 1, got {steps}")
    for name, value in (("queries", queries), ("eot", eot), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    few = min(IMAGES, batch_size)
    healthy = examine(model, x, y, threat, num_classes=num_classes, images=few, losses=(), sets_mode=True)
    require_healthy(healthy, apart_from=["finite"])
    randomness = healthy.of("randomness")
    votes = 1 if randomness is None or randomness.level == "pass" else VOTES
    subject = Subject(Attached(model), x, y, threat, num_classes, batch_size, Streams(seed), votes)
    with kept(model, like_of(model, x).device):
        torch.manual_seed(seed)  # what a randomised model draws; the generator comes back
        return _diagnose(subject, transfer, queries, steps, eot, listen or (lambda evidence: None))


VOTES = 11
"""Forwards that judge an image of a randomised model."""


def _diagnose(
    subject: Subject,
    transfer: nn.Module | None,
    queries: int,
    steps: tuple[int, int, int],
    eot: int,
    listen: Callable[[Evidence], None],
) -> Masking:
    y, total, random = subject.y.cpu(), len(subject), subject.votes > 1
    clean = subject.clean()
    if not clean.any():
        raise UnhealthyError(f"all {total} images are misclassified without attack: there is nothing to examine")
    subject = subject.head(clean.nonzero().squeeze(1))
    evidence: list[Evidence] = []
    fooled: dict[str, Tensor] = {}

    def keep(*found: Evidence) -> None:
        for one in found:
            evidence.append(one)
            listen(one)

    keep(checks.examine_images(total))
    keep(*checks.examine_zero_gradients(subject))
    keep(checks.examine_direction(subject, eot if random else 1))
    looks = checks.climb(subject, steps)
    fooled |= {f"pgd-{count}": found for count, found in looks.items()}
    keep(checks.examine_steps(looks, total))
    fooled["fgsm"] = subject.fooled("fgsm", fgsm())
    strong = torch.stack(list(looks.values())).any(0)
    keep(checks.examine_single_step(fooled["fgsm"], strong))
    keep(checks.examine_scale(subject, strong, steps[1], total))
    keep(checks.examine_unbounded(subject, total))
    second, found = checks.examine_second_opinions(subject, strong, total)
    fooled |= found
    keep(*second)
    white = torch.stack(list(fooled.values())).any(0)
    one, fooled["square"] = checks.examine_black_box(subject, white, queries, total)
    keep(one)
    if transfer is not None:
        one, fooled["transfer"] = checks.examine_transfer(subject, transfer, white, total)
        keep(one)
    if random:
        one, found = checks.examine_randomness(subject, eot, total)
        fooled |= {"pgd-eot": found["pgd-40-eot"]}
        keep(one)
    outcomes = {"clean": clean}
    for name, missed in fooled.items():
        outcomes[name] = clean.clone()
        outcomes[name][clean] = ~missed
    settings = {
        "norm": subject.threat.norm,
        "eps": float(subject.threat.eps),
        "steps": list(steps),
        "queries": queries,
        "eot": eot if random else None,
        "transfer": transfer is not None,
        "batch_size": subject.batch_size,
        "seed": subject.streams.seed,
    }
    return Masking(tuple(evidence), outcomes, y, settings)
