"""Does it matter where in the image the budget is small? Four quarters against a uniform budget of the same mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gambeson.core.errors import InputError
from gambeson.diagnosis.spread import Difference, Spread, difference, spread
from gambeson.parts.masks import Corner

SETUPS: dict[str, Corner | None] = {"uniform": None, "low-ul": "ul", "low-ur": "ur", "low-bl": "bl", "low-br": "br"}
"""The quarter with the small budget by setup; None for the uniform control."""

PAIRS = (*((name, "uniform") for name in SETUPS if name != "uniform"), ("low-ul", "low-br"))
"""The setups that are compared; the last pair is the one that is published."""

PUBLISHED = {"low-br": {"clean": 0.7677, "pgd-20": 0.4675}, "low-ul": {"clean": 0.7800, "pgd-20": 0.4769}}
"""Published accuracies (see `Regions`), not measured here."""


def scaled(eps: float, factor: float) -> float:
    """A budget times a factor, as one would type it: 1.5 times 0.2 is 0.3, not 0.30000000000000004.

    Examples:
        >>> scaled(0.2, 1.5), scaled(8 / 255, 0.75) == 6 / 255
        (0.3, True)
    """
    return round(255 * factor * eps, 9) / 255


def mean_budget(eps: float, eps_low: float) -> float:
    """The mean budget with `eps_low` in one quarter of the image: `(3 eps + eps_low) / 4`.

    Examples:
        >>> mean_budget(0.3, 0.15), mean_budget(12 / 255, 6 / 255) == 10.5 / 255
        (0.2625, True)
    """
    return scaled(3 * eps + eps_low, 0.25)


def budget_text(eps: float) -> str:
    """A budget to read: in grey levels where it is a small one, else as a fraction of the pixel range.

    Examples:
        >>> budget_text(10.5 / 255), budget_text(0.2625)
        ('10.5/255', '0.2625')
    """
    return f"{255 * eps:.4g}/255" if 255 * eps < 33 else f"{eps:.4g}"


@dataclass(frozen=True, kw_only=True)
class Regions:
    """What the trainings of the regional experiment gave.

    In four setups one quarter of the image has the budget `eps_low` and the rest `eps`; in the fifth, the control, all
    of it has their mean. All else is equal, and seed by seed the setups share initial weights and the order of images.

    PART's figure 1 shows two of the four, on CIFAR-10 with ResNet-18, at 6/255 and 12/255. Published there, natural and
    PGD-20 accuracy: 76.77 % and 46.75 % with the small budget at the bottom right, 78.00 % and 47.69 % at the upper
    left. Its epochs, seeds and evaluation budget are not stated, and it has no control.

    Args:
        eps: Budget of three quarters, fraction of the pixel range.
        eps_low: Budget of the fourth.
        eval_eps: Budget of the attacks on the test set.
        n: Test images.
        flip: Whether the training mirrored images: then left and right are the same experiment in expectation.
        seeds: Seeds of the trainings.
        accuracy: By setup and attack, `clean` among them, one accuracy in [0, 1] per seed.

    Raises:
        InputError: A setup is missing, or does not have an accuracy for every attack and seed.

    References:
        Zhang, Liu, Zhou, Zhang, Liu, "Improving accuracy-robustness trade-off via pixel reweighted adversarial
        training", ICML 2024, https://arxiv.org/abs/2406.00685, figure 1.
    """

    eps: float
    eps_low: float
    eval_eps: float
    n: int
    flip: bool
    seeds: tuple[int, ...]
    accuracy: Mapping[str, Mapping[str, tuple[float, ...]]]

    def __post_init__(self) -> None:
        if set(self.accuracy) != set(SETUPS):
            raise InputError(f"the setups are {', '.join(SETUPS)}, got {', '.join(self.accuracy)}")
        for name, found in self.accuracy.items():
            counts = {attack: len(values) for attack, values in found.items()}
            if set(counts) != set(self.attacks) or set(counts.values()) != {len(self.seeds)}:
                raise InputError(f"{name} needs an accuracy for each of {len(self.seeds)} seeds and each attack")

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks, `clean` among them."""
        return tuple(self.accuracy["uniform"])

    def spread(self, setup: str, attack: str) -> Spread:
        """The accuracy of a setup over the seeds."""
        return spread(self.accuracy[setup][attack])

    def difference(self, setup: str, reference: str, attack: str) -> Difference:
        """The accuracy of a setup minus that of another, seed by seed."""
        return difference(self.accuracy[setup][attack], self.accuracy[reference][attack])

    def sentences(self) -> list[str]:
        """What may be concluded."""
        said = [self._verdict()]
        if self.flip:
            said.append(
                "Images were mirrored in training: ul and ur, and bl and br, are the same experiment in expectation;"
                " what can differ is top and bottom."
            )
        return said

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; accuracies are shares."""
        return {
            "eps": self.eps,
            "eps_low": self.eps_low,
            "uniform_eps": mean_budget(self.eps, self.eps_low),
            "eval_eps": self.eval_eps,
            "n": self.n,
            "flip": self.flip,
            "seeds": list(self.seeds),
            "accuracy": {
                setup: {
                    attack: {"values": list(values), **asdict(self.spread(setup, attack))}
                    for attack, values in self.accuracy[setup].items()
                }
                for setup in SETUPS
            },
            "differences": [
                {"setup": setup, "to": reference, "attack": attack, **asdict(self.difference(setup, reference, attack))}
                for setup, reference in PAIRS
                for attack in self.attacks
            ],
            "sentences": self.sentences(),
            "published": PUBLISHED,
        }

    def _verdict(self) -> str:
        if len(self.seeds) < 3:
            return "Fewer than three seeds: nothing follows from these differences."
        controlled = [(setup, attack) for setup, to in PAIRS if to == "uniform" for attack in self.attacks]
        apart = [(s, a) for s, a in controlled if self.difference(s, "uniform", a).excludes_zero]
        count = len(controlled)
        chance = (
            f"by chance alone one or more of {count} intervals do in up to {min(1, 0.05 * count):.0%} of experiments"
        )
        if not apart:
            return f"None of the {count} intervals (95 %) of a difference to the uniform control excludes zero."
        named = ", ".join(f"{attack} of {setup}" for setup, attack in apart)
        return f"The 95 % interval of the difference to the uniform control excludes zero for {named} ({chance})."
