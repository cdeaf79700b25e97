"""Accuracy under common corruptions, with the outcome of every image kept, and its mean: the accuracy out of
distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gambeson.core.errors import DataError, InputError, nearest
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams
from gambeson.data.corruptions.names import CORRUPTIONS, SEVERITIES
from gambeson.data.loader import to_unit
from gambeson.data.splits import Examples
from gambeson.evaluation.examples import check_examples
from gambeson.evaluation.judging import judge
from gambeson.evaluation.statistics import Interval, wilson

RESAMPLES = 2_000
"""Bootstrap samples behind the interval of a mean."""


@dataclass(frozen=True, eq=False)
class CorruptionReport:
    """What a model does under corruptions.

    Attributes:
        outcomes: By corruption and severity, whether each image was classified correctly, bool `(N,)`.
        clean: The same of the images without corruption, bool `(M,)`; None where they are not known.
        y: Labels `(N,)`.
        settings: What was run, for the record.
    """

    outcomes: Mapping[tuple[str, int], Tensor]
    clean: Tensor | None
    y: Tensor
    settings: Mapping[str, Any]

    @property
    def corruptions(self) -> tuple[str, ...]:
        """The corruptions, in the order in which they were measured."""
        return tuple(dict.fromkeys(name for name, _ in self.outcomes))

    @property
    def severities(self) -> tuple[int, ...]:
        """The severities, ascending."""
        return tuple(sorted({severity for _, severity in self.outcomes}))

    def accuracy(self, corruption: str, severity: int) -> Interval:
        """Accuracy under one corruption at one severity with its Wilson 95 % interval."""
        correct = self.outcomes[corruption, severity]
        return wilson(int(correct.sum()), len(correct))

    def clean_accuracy(self) -> Interval | None:
        """Accuracy of the images without corruption with its Wilson 95 % interval, or None."""
        return None if self.clean is None else wilson(int(self.clean.sum()), len(self.clean))

    def mean(self, corruption: str | None = None, *, severity: int | None = None) -> Interval:
        """Unweighted mean of accuracies over what is not named; of all it is the accuracy out of distribution.

        `OOD = (1/|K|) sum_k (1/|S|) sum_s Acc(k, s)`. Not normalised by another model's errors (mCE). The interval is a
        bootstrap over images, 95 %: each occurs under every corruption, so that the `|K| |S| N` outcomes are not
        independent, while the images are.

        Args:
            corruption: Only that one.
            severity: Only that one.

        Returns:
            The mean; `n` is the number of images.
        """
        chosen = [
            correct
            for (name, level), correct in self.outcomes.items()
            if corruption in (None, name) and severity in (None, level)
        ]
        if not chosen:
            raise InputError(f"nothing was measured of corruption {corruption!r} at severity {severity!r}")
        # Every corruption was measured at every severity on the same number of images: the means' mean is this one.
        return bootstrap_mean(torch.stack(chosen).double().mean(0))

    def to_dict(self) -> dict[str, Any]:
        """Everything but the outcomes, for JSON."""
        clean = self.clean_accuracy()
        return {
            **self.settings,
            "n": len(self.y),
            "clean": vars(clean) if clean else None,
            "ood": vars(self.mean()),
            "by_severity": {str(level): vars(self.mean(severity=level)) for level in self.severities},
            "corruptions": {
                name: {
                    "mean": vars(self.mean(name)),
                    "severities": {str(level): vars(self.accuracy(name, level)) for level in self.severities},
                }
                for name in self.corruptions
            },
        }


def bootstrap_mean(values: Tensor, *, seed: int = 0) -> Interval:
    """The mean of a number per image, with the 2.5 % and 97.5 % quantiles of its bootstrap over the images.

    Args:
        values: One number per image, such as the share of corruptions under which it is right, shape `(N,)`.
        seed: Seed of the resampling.

    Raises:
        InputError: No images.

    Examples:
        >>> bootstrap_mean(torch.ones(5))
        Interval(value=1.0, low=1.0, high=1.0, n=5)

    References:
        Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
    """
    n = len(values)
    if n == 0:
        raise InputError("a mean needs at least one image")
    # How often each distinct value is drawn is multinomial: that does not grow with the number of images.
    distinct, counts = np.unique(values.double().numpy(), return_counts=True)
    rng = np.random.default_rng(Streams(seed).number("bootstrap"))
    means = rng.multinomial(n, counts / n, size=RESAMPLES) @ distinct / n
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(values.double().mean()), float(low), float(high), n)


def evaluate_corruptions(
    model: nn.Module,
    source: Callable[[str, int], Examples],
    corruptions: Sequence[str],
    *,
    num_classes: int,
    severities: Sequence[int] = SEVERITIES,
    clean: Examples | None = None,
    batch_size: int = 256,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> CorruptionReport:
    """Accuracy of `model` under every corruption at every severity.

    Args:
        model: Maps images in [0, 1] to logits.
        source: Gives the images of a corruption at a severity, always the same number with the same labels: generated,
            such as `lambda name, level: replace(test, x=corrupt(test.x, name, level))`, or read with `read_corrupted`.
        corruptions: Names in `CORRUPTIONS`.
        num_classes: Number of classes.
        severities: Severities, each 1 to 5.
        clean: The images without corruption, measured too where given.
        batch_size: Images at a time.
        settings: What the record should say besides.
        progress: Called with the corruption and the severity once they are measured.

    Returns:
        The report, on the CPU.

    Raises:
        InputError: Unknown or no corruptions or severities, or images that do not fit.
        DataError: The labels differ from one corruption to another.
    """
    if not corruptions or not severities:
        raise InputError("an evaluation needs at least one corruption and one severity")
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise InputError(f"unknown corruption {name!r}", hint=nearest(name, CORRUPTIONS))
    for severity in severities:
        if severity not in SEVERITIES:
            raise InputError(f"a severity must be 1, 2, 3, 4 or 5, got {severity!r}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    levels = sorted(set(severities))
    right = None if clean is None else _judged(model, clean, num_classes, batch_size)
    outcomes: dict[tuple[str, int], Tensor] = {}
    y: Tensor | None = None
    for name in dict.fromkeys(corruptions):
        for severity in levels:
            examples = source(name, severity)
            labels = examples.y.cpu()
            if y is not None and not torch.equal(y, labels):
                raise DataError(f"the labels of {name} at severity {severity} are not those of the others")
            y = labels
            outcomes[name, severity] = _judged(model, examples, num_classes, batch_size)
            if progress:
                progress(name, severity)
    described = {**(settings or {}), "severities": levels, "batch_size": batch_size}
    return CorruptionReport(outcomes, right, y if y is not None else torch.empty(0), described)


def _judged(model: nn.Module, examples: Examples, num_classes: int, batch_size: int) -> Tensor:
    check_examples(examples.x, examples.y, num_classes)
    like = like_of(model, examples.x[:0])
    parts = []
    for start in range(0, len(examples), batch_size):
        part = examples.subset(slice(start, start + batch_size)).to(like.device)
        parts.append(judge(model, to_unit(part.x[:]).to(like.dtype), part.y, num_classes).cpu())
    return torch.cat(parts)
