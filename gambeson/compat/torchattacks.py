"""torchattacks' interface: `PGD(model, eps=8/255, alpha=2/255, steps=10)(images, labels)`.

Names, arguments and defaults are those of torchattacks 3.5.1; images are in [0, 1], and the model normalises inside.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gambeson import attacks
from gambeson.attacks import AutoPGD, Gaussian, Hunt, Uniform, Zero
from gambeson.attacks.attack import Attack
from gambeson.compat.callables import as_module, require_fitting
from gambeson.core.errors import InputError, require_known
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat, create_threat
from gambeson.core.types import Batch

Model = nn.Module | Callable[[Tensor], Tensor]


class _Called:
    """An attack on a model with a threat, called with images and labels."""

    def __init__(self, model: Model, attack: Attack, threat: Threat, seed: int = 0) -> None:
        self.model, self.attack, self.threat, self.seed = as_module(model), attack, threat, seed
        self.calls = self.classes = 0

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images of the shape of `images`, detached; every call draws other numbers.

        Raises:
            InputError: Images outside [0, 1], or labels that are not one per image or that the model does not have.
        """
        if not images.is_floating_point():
            raise InputError(f"images must be floating-point in [0, 1], got {images.dtype}", hint="divide by 255")
        self.classes = require_fitting(self.model, images, labels, self.classes)
        like = next(self.model.parameters(), images)
        batch = Batch(images.to(like.device), labels.to(like.device), torch.arange(len(images), device=like.device))
        rng = Streams(self.seed).at(type(self).__name__, self.calls, like.device)
        self.calls += 1
        return self.attack(self.model, batch, self.threat, rng)

    def set_normalization_used(self, mean: object, std: object) -> None:
        """Not here: images are in [0, 1].

        Raises:
            InputError: Always.
        """
        raise InputError(
            "images are in [0, 1] here, and the model normalises inside",
            hint="put the normalisation before the network, in one nn.Sequential",
        )

    def _untargeted(self, *_: object, **__: object) -> None:
        """Targeted modes are not here.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "torchattacks' targeted modes are not covered",
            hint="APGDT, or gambeson.attacks.AutoPGD with loss='margin-targeted', go towards the nearest classes",
        )

    set_mode_targeted_by_function = set_mode_targeted_by_label = _untargeted
    set_mode_targeted_random = set_mode_targeted_least_likely = _untargeted


class FGSM(_Called):
    """The fast gradient sign method, see `gambeson.attacks.fgsm`."""

    def __init__(self, model: Model, eps: float = 8 / 255) -> None:
        super().__init__(model, attacks.fgsm(), Linf(eps))


class PGD(_Called):
    """Projected gradient descent in the Linf ball, see `gambeson.attacks.PGD`."""

    def __init__(
        self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, random_start: bool = True
    ) -> None:
        start = Uniform() if random_start else Zero()
        super().__init__(model, attacks.PGD(steps=steps, step_size=alpha, start=start), Linf(eps))


class PGDL2(_Called):
    """Projected gradient descent in the L2 ball, see `gambeson.attacks.PGD`."""

    def __init__(
        self, model: Model, eps: float = 1.0, alpha: float = 0.2, steps: int = 10, random_start: bool = True
    ) -> None:
        start = Uniform() if random_start else Zero()
        super().__init__(model, attacks.PGD(steps=steps, step_size=alpha, start=start), L2(eps))


class TPGD(_Called):
    """The inner attack of TRADES: PGD on the divergence from the clean output. Labels are not looked at."""

    def __init__(self, model: Model, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10) -> None:
        attack = attacks.PGD(steps=steps, step_size=alpha, start=Gaussian(0.001), loss="kl")
        super().__init__(model, attack, Linf(eps))

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Adversarial images of the shape of `images`, detached."""
        return super().__call__(images, torch.zeros(len(images), dtype=torch.int64) if labels is None else labels)


class APGD(_Called):
    """Auto-PGD on the cross-entropy or the difference of logits ratio, see `gambeson.attacks.AutoPGD`."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        loss: str = "ce",
        eot_iter: int = 1,
    ) -> None:
        require_known("loss", loss, ("ce", "dlr"))
        search = AutoPGD(loss=loss, steps=steps, restarts=n_restarts, eot=eot_iter)  # type: ignore[arg-type]
        super().__init__(model, Hunt(search), create_threat(norm, eps), seed)


class APGDT(_Called):
    """Auto-PGD on the targeted difference of logits ratio, see `gambeson.attacks.AutoPGD`."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        seed: int = 0,
        eot_iter: int = 1,
        n_classes: int = 10,
    ) -> None:
        search = AutoPGD(loss="dlr-targeted", steps=steps, restarts=n_restarts, eot=eot_iter, targets=n_classes - 1)
        super().__init__(model, Hunt(search), create_threat(norm, eps), seed)


class FAB(_Called):
    """The targeted FAB attack, see `gambeson.attacks.FAB`."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        steps: int = 10,
        n_restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        seed: int = 0,
        multi_targeted: bool = False,
        n_classes: int = 10,
    ) -> None:
        search = attacks.FAB(
            targeted=multi_targeted,
            steps=steps,
            restarts=n_restarts,
            targets=n_classes - 1,
            alpha_max=alpha_max,
            eta=eta,
            beta=beta,
        )
        super().__init__(model, Hunt(search), create_threat(norm, eps), seed)


class Square(_Called):
    """The Square attack, see `gambeson.attacks.Square`."""

    def __init__(
        self,
        model: Model,
        norm: str = "Linf",
        eps: float = 8 / 255,
        n_queries: int = 5000,
        n_restarts: int = 1,
        p_init: float = 0.8,
        loss: str = "margin",
        resc_schedule: bool = True,
        seed: int = 0,
    ) -> None:
        require_known("loss", loss, ("margin", "ce"))
        search = attacks.Square(
            queries=n_queries,
            p_init=p_init,
            restarts=n_restarts,
            rescale=resc_schedule,
            loss=loss,  # type: ignore[arg-type]
        )
        super().__init__(model, Hunt(search), create_threat(norm, eps), seed)
