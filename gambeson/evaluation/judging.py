"""What every evaluation shares: the images that count, and the verdict."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gambeson.core.errors import UnhealthyError
from gambeson.core.modes import batch_norm
from gambeson.core.threat import Threat, box


def returned_images(x_adv: Tensor, x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """What is judged, and for which examples an attack returned an image at all.

    Returns:
        Images projected onto the ball and clipped, the clean image where the attack's has NaN or infinite pixels; and
        bool `(N,)`.
    """
    x_adv = box(threat.project(x_adv, x))
    returned = x_adv.isfinite().flatten(1).all(1)
    return torch.where(returned.view(-1, 1, 1, 1), x_adv, x), returned


def judge(model: nn.Module, x: Tensor, y: Tensor, num_classes: int) -> Tensor:
    """Whether each image is classified correctly, in evaluation mode, bool `(N,)`. Logits that are not finite are
    wrong.

    Raises:
        UnhealthyError: The model has another number of outputs.
    """
    with torch.no_grad(), batch_norm(model, "running"):
        logits = model(x)
    if logits.shape != (len(x), num_classes):
        raise UnhealthyError(
            f"the model must give logits of shape ({len(x)}, {num_classes}), got {tuple(logits.shape)}",
            hint="is the checkpoint of a model for another number of classes?",
        )
    return (logits.argmax(1) == y) & logits.isfinite().all(1)
