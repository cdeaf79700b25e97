"""A model under attack: the examples it has right, and which of them an attack makes it miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gambeson.attacks.attack import Attack
from gambeson.core.modes import batch_norm
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.core.types import Batch
from gambeson.data.loader import to_unit
from gambeson.evaluation.judging import judge, returned_images


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the examples on which it is attacked.

    Attributes:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1].
        y: Labels `(N,)`.
        threat: The ball.
        num_classes: Number of classes.
        batch_size: Images at a time.
        streams: The randomness.
        votes: Forwards that judge an image, wrong where more than half are: one, and more for a randomised model.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat
    num_classes: int
    batch_size: int
    streams: Streams
    votes: int = 1

    def __len__(self) -> int:
        return len(self.y)

    def head(self, rows: Tensor) -> Subject:
        """The same with the examples `rows`, int64 `(M,)`."""
        return replace(self, x=self.x[rows.to(self.x.device)], y=self.y[rows.to(self.y.device)])

    def batches(self) -> Iterator[tuple[Batch, slice]]:
        """Images and labels on the model's device and in its type, with their place."""
        like = like_of(self.model, self.x)
        for start in range(0, len(self), self.batch_size):
            part = slice(start, min(start + self.batch_size, len(self)))
            x = to_unit(self.x[part].to(like.device)).to(like.dtype)
            yield (
                Batch(
                    x, self.y[part].to(like.device, torch.int64), torch.arange(part.start, part.stop, device=x.device)
                ),
                part,
            )

    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        """Whether images are classified correctly, bool `(M,)`."""
        ballots = [judge(self.model, x, y, self.num_classes) for _ in range(self.votes)]
        return torch.stack(ballots).double().mean(0) >= 0.5

    def clean(self) -> Tensor:
        """Which examples are classified correctly without attack, bool `(N,)` on the CPU."""
        return torch.cat([self.correct(batch.x, batch.y).cpu() for batch, _ in self.batches()])

    def fooled(
        self, name: str, attack: Attack, *, attacked: nn.Module | None = None, threat: Threat | None = None
    ) -> Tensor:
        """Which examples an attack makes the model miss, bool `(N,)` on the CPU.

        Args:
            name: Addresses the random draws.
            attack: The attack.
            attacked: Attack this model instead, and judge by the model.
            threat: Another ball.
        """
        threat, found = threat or self.threat, torch.zeros(len(self), dtype=torch.bool)
        for number, (batch, part) in enumerate(self.batches()):
            rng = self.streams.at(f"masking/{name}", number, batch.x.device)
            x_adv, _ = returned_images(attack(attacked or self.model, batch, threat, rng), batch.x, threat)
            found[part] = ~self.correct(x_adv, batch.y).cpu()
        return found

    def per_example(self, measure: Callable[[Batch, torch.Generator], Tensor], name: str) -> Tensor:
        """`measure` of every batch, `(M, ...)` each, put together on the CPU.

        Args:
            measure: Batch and generator to one row per example.
            name: Addresses the random draws.
        """
        rows = []
        with batch_norm(self.model, "running"):
            for number, (batch, _) in enumerate(self.batches()):
                rows.append(measure(batch, self.streams.at(f"masking/{name}", number, batch.x.device)).cpu())
        return torch.cat(rows)


class Attached(nn.Module):
    """A model whose logits have a gradient, zero where the forward leaves autograd, so that attacks run on it.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits."""
        logits = self.model(x)
        return logits + 0 * x.flatten(1).sum(1, keepdim=True) if x.requires_grad else logits


class Rescaled(nn.Module):
    """A model with its logits multiplied by a number, which no prediction notices.

    Args:
        model: The model.
        factor: The number, positive.
    """

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """`factor * z`."""
        return self.factor * self.model(x)


class Averaged(nn.Module):
    """The mean logits of several forwards of a randomised model: its gradient is that of the expectation (EoT).

    Args:
        model: The model.
        forwards: How many.
    """

    def __init__(self, model: nn.Module, forwards: int) -> None:
        super().__init__()
        self.model, self.forwards = model, forwards
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        """The mean."""
        return torch.stack([self.model(x) for _ in range(self.forwards)]).mean(0)
