"""What every evaluation looks at before it begins: errors refuse it; what has to stand beside the number is said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from gambeson.core.errors import GambesonWarning
from gambeson.core.threat import Threat
from gambeson.data.stored import Images
from gambeson.evaluation.doctor import IMAGES, examine
from gambeson.evaluation.finding import require_healthy

BESIDE_THE_NUMBER = ("finite", "randomness", "batch", "buffers", "gradient (ce)", "gradient (margin)")
"""Checks of `examine` whose warnings an evaluation passes on; the others are suspicions, for `gambeson doctor`."""


def preflight(
    model: nn.Module,
    x: Images,
    y: Tensor,
    threat: Threat,
    losses: Sequence[str],
    *,
    num_classes: int,
    batch_size: int,
) -> None:
    """Refuse what would make an evaluation's number wrong, and warn of what has to stand beside it.

    Args:
        model: As for `examine`.
        x: Images.
        y: Labels.
        threat: The ball.
        losses: Losses whose gradients the attacks follow: `ce`, `margin`.
        num_classes: Number of classes.
        batch_size: Images at a time.

    Raises:
        InputError: What is an error to `examine`, except logits that are not finite: they count as wrong.

    Warns:
        GambesonWarning: The model is random, gives logits that are not finite, or lacks the gradient at a few images.
    """
    found = examine(
        model,
        x,
        y,
        threat,
        num_classes=num_classes,
        images=min(IMAGES, batch_size),
        losses=losses,
        sets_mode=True,
    )
    require_healthy(found, apart_from=["finite"])
    for finding in found.findings:
        if finding.level != "pass" and finding.check in BESIDE_THE_NUMBER:
            warnings.warn(str(finding), GambesonWarning, stacklevel=3)
