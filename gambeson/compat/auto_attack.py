"""auto-attack's interface: `AutoAttack(model, norm="Linf", eps=8/255).run_standard_evaluation(x, y, bs=250)`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gambeson.attacks import FAB, AutoPGD, Search, Square
from gambeson.compat.callables import as_module, logits_of, require_fitting
from gambeson.core.errors import InputError, nearest, require_known
from gambeson.core.threat import create_threat
from gambeson.evaluation import ENSEMBLES, AutoAttackReport, Stage, autoattack

VERSIONS = ("standard", "plus", "rand", "custom")


@dataclass
class APGDSettings:
    """What `adversary.apgd` and `adversary.apgd_targeted` let a script change."""

    n_restarts: int = 5
    n_iter: int = 100
    eot_iter: int = 1
    n_target_classes: int = 9


@dataclass
class FABSettings:
    """What `adversary.fab` lets a script change."""

    n_restarts: int = 5
    n_iter: int = 100
    n_target_classes: int = 9


@dataclass
class SquareSettings:
    """What `adversary.square` lets a script change."""

    n_queries: int = 5000
    n_restarts: int = 1
    p_init: float = 0.8


class AutoAttack:
    """AutoAttack as scripts for fra31/auto-attack and RobustBench call it.

    Args:
        model: A module, or a function, that maps images in [0, 1] to logits.
        norm: `Linf` or `L2`.
        eps: Budget.
        seed: Seed; None is 0.
        verbose: Print accuracies.
        attacks_to_run: For `custom`: `apgd-ce`, `apgd-dlr`, `fab`, `square`, `apgd-t`, `fab-t`.
        version: `standard`, `plus`, `rand` or `custom`.
        device: Where to compute; None leaves the model where it is.
        log_path: File to which what is printed is added.

    Raises:
        InputError: Another norm, version or attack; attacks for a version that has its own.

    Examples:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
        >>> x, y = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
        >>> adversary = AutoAttack(model, eps=8 / 255, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
        >>> adversary.run_standard_evaluation(x, y, bs=4).shape
        torch.Size([4, 3, 2, 2])

    References:
        Croce, Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
        ICML 2020, https://arxiv.org/abs/2003.01690; code: https://github.com/fra31/auto-attack
    Departures:
        Without a seed the release takes the clock; here it is 0. Its default device is `cuda`. L1 and TensorFlow are
        left out. `state_path` is a folder, and a second call with it really goes on. Modules are evaluated in
        evaluation mode, and come back in theirs. `version="rand"` must be asked for where the model is randomised.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[Tensor], Tensor],
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        device: str | torch.device | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        require_known("version", version, VERSIONS)
        if version != "custom" and attacks_to_run:
            raise InputError(f"the version {version} has its own attacks", hint="choose attacks with version='custom'")
        self.model, self.norm, self.epsilon = as_module(model), norm, eps
        self.threat = create_threat(norm, eps)
        self.seed, self.verbose, self.device, self.log_path = seed, verbose, device, log_path
        self.version, self.attacks_to_run = version, list(attacks_to_run)
        self.apgd, self.apgd_targeted = APGDSettings(), APGDSettings(n_restarts=1)
        self.fab, self.square = FABSettings(), SquareSettings()
        self.report: AutoAttackReport | None = None
        for name in attacks_to_run:
            self._search(name)
        if version != "custom":
            self.set_version(version)

    def set_version(self, version: str = "standard") -> None:
        """Take the attacks and settings of a version, as the release does."""
        require_known("version", version, VERSIONS[:-1])
        self.version = version
        self.attacks_to_run = [search.name for search in ENSEMBLES[version][1]()]
        many = version == "plus"
        self.apgd.n_restarts = self.fab.n_restarts = 5 if many else 1
        self.apgd.eot_iter = self.apgd_targeted.eot_iter = 20 if version == "rand" else 1
        self.apgd_targeted.n_restarts = 1
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 9
        self.square.n_queries = 5000

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Run the attacks one after the other, each on what still stands.

        Args:
            x_orig: Images in [0, 1], `(N, C, H, W)`.
            y_orig: Labels `(N,)`.
            bs: Images at a time.
            return_labels: Return the predictions on the adversarial images too.
            state_path: Folder that keeps what is found; a later call goes on from there.

        Returns:
            Adversarial images, the clean one where none was found, on the device of `x_orig`; and, if asked for, the
            predictions. `self.report` has the rest.
        """
        self.report = self._run(x_orig, y_orig, bs, self.attacks_to_run, state_path)
        x_adv = self.report.x_adv.to(x_orig)
        return (x_adv, self._predict(x_adv, bs)) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Tensor] | dict[str, tuple[Tensor, Tensor]]:
        """Run every attack on all images; adversarial images, and predictions if asked for, by attack."""
        found = {}
        for name in self.attacks_to_run:
            x_adv = self._run(x_orig, y_orig, bs, [name], None, word="by").x_adv.to(x_orig)
            found[name] = (x_adv, self._predict(x_adv, bs)) if return_labels else x_adv
        return found  # type: ignore[return-value]

    def get_logits(self, x: Tensor) -> Tensor:
        """The model's logits `(N, K)` of images in [0, 1], in evaluation mode and without gradients."""
        return logits_of(self.model, x)

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The share of images that are classified correctly."""
        return float((self._predict(x_orig, bs) == y_orig).double().mean())

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images, as torchattacks calls it."""
        return self._run(images, labels, len(images), self.attacks_to_run, None, quiet=True).x_adv.to(images)

    def _run(
        self,
        x: Tensor,
        y: Tensor,
        bs: int,
        names: Sequence[str],
        state_path: str | Path | None,
        quiet: bool = False,
        word: str = "after",
    ) -> AutoAttackReport:
        searches = [self._search(name) for name in names]
        if self.device is not None:
            self.model.to(self.device)
        num_classes = require_fitting(self.model, x, y)
        began = time.monotonic()

        def tell(stage: Stage) -> None:
            accuracy = f"{stage.left / len(y):.2%} (total time {time.monotonic() - began:.1f} s)"
            self._say(f"robust accuracy {word} {stage.attack.upper()}: {accuracy}", quiet)

        self._say(f"initial accuracy: {self.clean_accuracy(x, y, bs):.2%}", quiet)
        report = autoattack(
            self.model,
            x,
            y,
            self.threat,
            num_classes=num_classes,
            version="custom",
            attacks=searches,
            seed=self.seed or 0,
            slots=bs,
            ledger=None if state_path is None else Path(state_path),
            listen=tell,
        )
        self._say(f"robust accuracy: {report.accuracy().value:.2%}", quiet)
        return report

    def _search(self, name: str) -> Search:
        apgd, targeted, fab, square = self.apgd, self.apgd_targeted, self.fab, self.square
        makers: dict[str, Callable[[], Search]] = {
            "apgd-ce": lambda: AutoPGD(loss="ce", steps=apgd.n_iter, restarts=apgd.n_restarts, eot=apgd.eot_iter),
            "apgd-dlr": lambda: AutoPGD(loss="dlr", steps=apgd.n_iter, restarts=apgd.n_restarts, eot=apgd.eot_iter),
            "apgd-t": lambda: AutoPGD(
                loss="dlr-targeted",
                steps=targeted.n_iter,
                restarts=targeted.n_restarts,
                targets=targeted.n_target_classes,
                eot=targeted.eot_iter,
            ),
            "fab": lambda: FAB(targeted=False, steps=fab.n_iter, restarts=fab.n_restarts),
            # the release sets one restart whenever it runs the targeted form
            "fab-t": lambda: FAB(targeted=True, steps=fab.n_iter, restarts=1, targets=fab.n_target_classes),
            "square": lambda: Square(queries=square.n_queries, p_init=square.p_init, restarts=square.n_restarts),
        }
        if name not in makers:
            raise InputError(f"unknown attack {name!r}", hint=nearest(name, makers))
        return makers[name]()

    def _predict(self, x: Tensor, bs: int) -> Tensor:
        return torch.cat([logits_of(self.model, part).argmax(1) for part in x.split(bs)]).to(x.device)

    def _say(self, text: str, quiet: bool) -> None:
        if self.verbose and not quiet:
            print(text)
            if self.log_path is not None:
                with open(self.log_path, "a") as file:
                    file.write(text + "\n")
