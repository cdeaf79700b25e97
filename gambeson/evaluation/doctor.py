"""Pre-flight checks: does a model on these images have the properties without which an attack measures nothing?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gambeson.attacks.attack import budget_of
from gambeson.core.errors import InputError, require_known
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams
from gambeson.core.threat import Threat
from gambeson.data.loader import to_unit
from gambeson.data.stored import Images
from gambeson.evaluation.behaviour import (
    examine_accuracy,
    examine_batches,
    examine_buffers,
    examine_finite,
    examine_mode,
    examine_probabilities,
    examine_randomness,
    look,
    repeat,
)
from gambeson.evaluation.finding import Diagnosis, Finding
from gambeson.evaluation.gradients import LOSSES, differentiate, examine_gradients
from gambeson.evaluation.normalisation import examine_normalisation
from gambeson.evaluation.structure import examine_budget, examine_examples, examine_types, modal_modules

CHECKS: dict[str, str] = {
    "images": "images in [0, 1] or bytes, finite, not divided by 255 twice",
    "labels": "labels in range, one per image",
    "eps": "a budget that is a fraction of the pixel range, of a size that means something in its norm",
    "types": "weights in float32",
    "mode": "evaluation mode: BatchNorm and Dropout do not train",
    "output": "logits: one tensor of one row per image and one column per class",
    "finite": "logits that are neither NaN nor infinite",
    "probabilities": "logits that are not already a softmax",
    "normalisation": "images that are normalised once",
    "randomness": "the same output for the same images",
    "batch": "an output that does not depend on the other images of the batch",
    "buffers": "buffers that a forward leaves alone",
    "gradient (ce)": "a gradient of the cross-entropy at every image whose logits change inside the ball",
    "gradient (margin)": "the same of the margin loss",
    "accuracy": "clean accuracy above chance",
}
"""What is examined, by the name of the check."""

IMAGES = 64
"""Images on which the model is run."""


def examine(
    model: nn.Module,
    x: Images,
    y: Tensor,
    threat: Threat,
    *,
    num_classes: int,
    images: int = IMAGES,
    losses: Sequence[str] = LOSSES,
    sets_mode: bool = False,
    seed: int = 0,
) -> Diagnosis:
    """Check a model and its data for what makes the number of an evaluation wrong.

    All images (of stored ones a few) and all labels are looked at; the model is run on a few, evenly over them: four to
    six forwards and one backward per loss, in evaluation mode. It is not run where images, labels or the type of the
    weights are in error. The model is bit for bit as before afterwards (modes, flags, gradients, buffers), and so is
    the global generator.

    What cannot be seen: constants of a normalisation that are wrong but plausible, except by the accuracy; and a
    gradient that is there and misleads.

    Args:
        model: Maps images in [0, 1] to logits.
        x: Images `(N, C, H, W)`, uint8 or float in [0, 1], or stored.
        y: Labels `(N,)` in `[0, num_classes)`.
        threat: Ball of the attacks that will follow.
        num_classes: Number of classes.
        images: Images on which the model is run, at most.
        losses: Losses whose gradients the attacks will follow, of `LOSSES`; none where there will be no attack.
        sets_mode: Whether who evaluates will set evaluation mode itself; else modules in training mode are an error.
        seed: Seed of the points of the ball that are compared where a gradient is zero.

    Returns:
        The findings, by name as in `CHECKS`, without those that could not be made.

    Raises:
        InputError: Fewer than one image, or an unknown loss.

    Examples:
        >>> from gambeson.core.threat import Linf
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax(1)).eval()
        >>> found = examine(model, torch.rand(8, 1, 2, 2), torch.arange(8) % 2, Linf("8/255"), num_classes=2)
        >>> [finding.check for finding in found.errors]
        ['probabilities']

    References:
        Carlini et al., "On evaluating adversarial robustness", 2019, https://arxiv.org/abs/1902.06705; Athalye,
        Carlini, Wagner, "Obfuscated gradients give a false sense of security", ICML 2018,
        https://arxiv.org/abs/1802.00420; Croce & Hein, "Reliable evaluation of adversarial robustness with an ensemble
        of diverse parameter-free attacks", ICML 2020, https://arxiv.org/abs/2003.01690 (the flags of AutoAttack).
    """
    if images < 1:
        raise InputError(f"at least 1 image is needed to examine a model, got {images}")
    for loss in losses:
        require_known("loss", loss, LOSSES)
    found = [*examine_examples(x, y, num_classes), examine_budget(threat, x.shape[1:]), examine_types(model)]
    n = 0
    if all(f.level != "error" or f.check == "eps" for f in found):
        n = min(images, len(x))
        rows = torch.linspace(0, len(x) - 1, n, dtype=torch.float64).round().long()
        like = like_of(model, x[:0])
        some = to_unit(x[rows.to(x.device)].to(like.device)).to(like.dtype)
        labels = y[rows.to(y.device)].to(like.device, torch.int64)
        own = budget_of(threat, rows.to(like.device))
        found += _run(model, some, labels, own, num_classes, losses, sets_mode, seed)
    elif not sets_mode:
        found.append(examine_mode(*_training(model), None, None))
    order = list(CHECKS)
    return Diagnosis(tuple(sorted(found, key=lambda f: order.index(f.check))), n)


def _run(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    num_classes: int,
    losses: Sequence[str],
    sets_mode: bool,
    seed: int,
) -> list[Finding]:
    """The checks for which the model is run."""
    found: list[Finding] = []
    modal, others = _training(model)
    given = None
    if not sets_mode and (modal or others):
        with kept(model, x.device):
            given = _as_it_is(model, x)
    with kept(model, x.device) as changed, frozen(model), batch_norm(model, "running"):
        looked = look(model, x, num_classes)
        if isinstance(looked, Finding):
            return [*found, looked, *([] if sets_mode else [examine_mode(modal, others, None, None)])]
        logits, heard = looked
        slopes = differentiate(model, x, y, losses) if losses else None
        seen = repeat(model, x, logits, slopes.logits if slopes else None)
        if not sets_mode:
            found.append(examine_mode(modal, others, given, seen))
        found.append(Finding("output", "pass", f"logits of {num_classes} classes"))
        found += [examine_finite(seen), examine_probabilities(seen), examine_normalisation(x, heard)]
        found += [examine_randomness(seen), examine_batches(model, seen), examine_accuracy(seen, y)]
        if slopes:
            rng = Streams(seed).at("doctor", 0, x.device)
            found += examine_gradients(model, seen, slopes, threat, losses, rng)
        found.append(examine_buffers(changed()))
    return found


def _training(model: nn.Module) -> tuple[list[str], int]:
    """The modules in training mode that are known to differ there, and the number of others."""
    modal = modal_modules(model)
    return modal, sum(m.training for m in model.modules()) - len(modal)


def _as_it_is(model: nn.Module, x: Tensor) -> Tensor | str | None:
    """What the model gives in the modes that it has, or the error."""
    try:
        with torch.no_grad():
            given = model(x.clone())
    except (RuntimeError, ValueError) as error:
        return str(error)
    return given if isinstance(given, Tensor) else None


@contextmanager
def kept(model: nn.Module, device: torch.device) -> Iterator[Callable[[], list[str]]]:
    """Inside the block a model may change its buffers and draw numbers; afterwards it and the generator are as before.

    Yields:
        A function that names the buffers that have changed so far.
    """
    before = [
        (f"{name}.{key}" if name else key, module, key, tensor, tensor.clone())
        for name, module in model.named_modules()
        for key, tensor in module._buffers.items()
        if tensor is not None
    ]

    def changed() -> list[str]:
        return [name for name, module, key, _, copy in before if not _same(module._buffers.get(key), copy)]

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield changed
        finally:
            with torch.no_grad():
                for _, module, key, tensor, copy in before:
                    module._buffers[key] = tensor
                    if not _same(tensor, copy):
                        tensor.copy_(copy)


def _same(a: Tensor | None, b: Tensor) -> bool:
    if a is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())
