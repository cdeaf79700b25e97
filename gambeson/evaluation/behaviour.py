"""Checks of what a model computes: a few forwards are compared with each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.evaluation.finding import Finding, finite_number
from gambeson.evaluation.normalisation import Heard, listening
from gambeson.evaluation.statistics import wilson

DEPENDS = 0.05
"""Share of the logits' spread from which a difference between batches of two sizes, which take different kernels, is
no rounding of any precision: bfloat16 has 1/256."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a model gave.

    Attributes:
        x: Images `(N, C, H, W)`.
        logits: Their logits `(N, K)`.
        again: Those of a second forward.
        mixed: Logits of the first half of the images, beside other ones than before in a batch of the same size.
        alone: What the first image gave alone, or the error.
    """

    x: Tensor
    logits: Tensor
    again: Tensor
    mixed: Tensor
    alone: Tensor | str

    @property
    def spread(self) -> float:
        """The largest difference between two logits of an image."""
        rows = self.logits[self.logits.isfinite().all(1)]
        return float((rows.amax(1) - rows.amin(1)).max()) if len(rows) else 0.0

    @property
    def rounding(self) -> float:
        """Differences up to here may be rounding. Off the CPU, float32 may be computed in TF32 or 16 bits."""
        exact = torch.finfo(self.logits.dtype).eps
        return self._rounding(exact if self.logits.device.type == "cpu" else max(exact, 2**-10))

    @property
    def exact(self) -> float:
        """The same between batches of one size, whose rows are computed alike in any precision."""
        return self._rounding(torch.finfo(self.logits.dtype).eps)

    def _rounding(self, eps: float) -> float:
        rows = self.logits[self.logits.isfinite().all(1)]
        size = float(rows.abs().max()) if len(rows) else 0.0
        own = torch.finfo(self.logits.dtype).eps
        return max(math.sqrt(eps) * self.spread, 100 * own * size, 0.01 * math.sqrt(own))

    @property
    def noise(self) -> float:
        """The largest difference between the two forwards of the same images."""
        return gap(self.logits, self.again)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference between two logits, over the images whose logits are finite in `a`."""
    rows = a.isfinite().all(1)
    return float((a - b)[rows].abs().nan_to_num(torch.inf, torch.inf).max()) if bool(rows.any()) else 0.0


def look(model: nn.Module, x: Tensor, num_classes: int) -> tuple[Tensor, Heard] | Finding:
    """Run a model on images; the caller sets its mode.

    Returns:
        The logits `(N, K)` and what its normalisation layers were given, or what is wrong with the output.
    """
    own = x.clone()
    with torch.no_grad(), listening(model, x.shape[1]) as heard:
        logits = model(own)
    wrong = output_refusal(logits, (len(x), num_classes))
    if wrong:
        return wrong
    if not torch.equal(own, x):
        hint = "copy before in-place operations: x = (x - mean) / std instead of x.sub_(mean)"
        return Finding("output", "error", "the model writes into the images that it is given", hint)
    return logits, heard


def repeat(model: nn.Module, x: Tensor, logits: Tensor, again: Tensor | None) -> Seen:
    """Run a model on images that it has seen, whole, in another batch and alone; the caller sets its mode.

    Args:
        model: Maps images to logits.
        x: Images `(N, C, H, W)`.
        logits: Their logits.
        again: Those of another forward, where there was one.
    """
    with torch.no_grad():
        half = (len(x) + 1) // 2
        mixed = model(torch.cat([x[:half], 1 - x[: max(1, len(x) - half)]]))[:half]
        try:
            alone: Tensor | str = model(x[:1].clone())
        except (RuntimeError, ValueError, IndexError) as error:  # BatchNorm in training mode refuses one value
            alone = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return Seen(x, logits, model(x.clone()) if again is None else again, mixed, alone)


def output_refusal(logits: Any, shape: tuple[int, int]) -> Finding | None:
    """What is wrong with the form of an output, or None."""
    if not isinstance(logits, Tensor):
        message = f"the model must give logits of shape {shape}, got a {type(logits).__name__}"
        return Finding("output", "error", message, "wrap it so that the forward returns the logits alone")
    if tuple(logits.shape) != shape:
        message = f"the model must give logits of shape {shape}, got {tuple(logits.shape)}"
        return Finding("output", "error", message, "is the checkpoint of a model for another number of classes?")
    if not logits.is_floating_point():
        return Finding("output", "error", f"the model must give logits, got {logits.dtype}", "return them, not argmax")
    return None


def examine_mode(modal: Sequence[str], others: int, given: Tensor | str | None, seen: Seen | None) -> Finding:
    """Is the model in evaluation mode, and if not, does that change what it computes?

    Args:
        modal: From `modal_modules`.
        others: Number of other modules in training mode.
        given: Logits in the modes that the model had, or the error; None where it was not run.
        seen: What it gave in evaluation mode, where it was run.
    """
    evidence = {"training": list(modal), "others": others}
    hint = "call model.eval(); else BatchNorm's statistics move with every attack step, and Dropout draws"
    differs = seen is not None and (isinstance(given, str) or (given is not None and _apart(given, seen)))
    if modal or differs:
        named = ", ".join(modal[:3]) + (f" and {len(modal) - 3} more" if len(modal) > 3 else "")
        what = f"{len(modal)} BatchNorm or Dropout modules ({named})" if modal else "modules"
        effect = "" if not differs else ", and the logits are not those of evaluation mode"
        return Finding("mode", "error", f"{what} are in training mode{effect}", hint, evidence)
    if others:
        effect = "" if seen is None else ", to no effect here"
        return Finding("mode", "warn", f"{others} modules are in training mode{effect}", hint, evidence)
    return Finding("mode", "pass", "evaluation mode", None, evidence)


def _apart(given: Tensor, seen: Seen) -> bool:
    return given.shape != seen.logits.shape or gap(seen.logits, given) > max(seen.rounding, 3 * seen.noise)


def examine_finite(seen: Seen) -> Finding:
    """Are all logits numbers? Those that are not count as wrong."""
    bad = int((~seen.logits.isfinite().all(1)).sum())
    evidence = {"images": bad}
    if bad:
        message = f"the logits of {bad} of {len(seen.x)} images are NaN or infinite"
        return Finding("finite", "error", message, "did the training diverge? is the checkpoint damaged?", evidence)
    return Finding("finite", "pass", "all logits are finite", None, evidence)


def examine_probabilities(seen: Seen) -> Finding:
    """Are the logits a softmax already? Another softmax on top of it flattens every gradient."""
    rows = seen.logits[seen.logits.isfinite().all(1)].double()
    evidence = {"min": float(rows.min()), "max": float(rows.max())} if len(rows) else {}
    if not len(rows) or rows.shape[1] < 2:
        return Finding("probabilities", "pass", "nothing to tell probabilities by", None, evidence)
    inside = bool(((rows >= -1e-4) & (rows <= 1 + 1e-4)).all())
    if inside and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        message = "the model gives probabilities: every row lies in [0, 1] and sums to 1"
        hint = "remove the softmax; the losses of the attacks (cross-entropy, DLR) are made for logits"
        return Finding("probabilities", "error", message, hint, evidence)
    return Finding(
        "probabilities", "pass", f"logits from {evidence['min']:.3g} to {evidence['max']:.3g}", None, evidence
    )


def examine_randomness(seen: Seen) -> Finding:
    """Do two forwards of the same images agree?"""
    changed = int((seen.logits.argmax(1) != seen.again.argmax(1)).sum())
    evidence = {"difference": finite_number(seen.noise), "spread": seen.spread, "predictions": changed}
    if seen.noise <= seen.rounding:
        return Finding("randomness", "pass", "two forwards agree", None, evidence)
    message = (
        f"two forwards of the same images differ by up to {seen.noise:.2g} in the logits ({changed} of {len(seen.x)}"
        " predictions): the accuracy is that of one draw"
    )
    hint = "attack the expectation (EoT; AutoAttack's version rand), and give the spread over several evaluations"
    return Finding("randomness", "warn", message, hint, evidence)


def examine_batches(model: nn.Module, seen: Seen) -> Finding:
    """Does the output of an image depend on those beside it?"""
    hint = "use running statistics: model.eval(), no training=True in the forward, BatchNorm with track_running_stats"
    stateless = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is None
    ]
    if stateless:
        hint += f"; without it are {', '.join(stateless[:3])}"
    if isinstance(seen.alone, str):
        return Finding("batch", "error", f"the model cannot be given a single image: {seen.alone}", hint)
    if seen.alone.shape != seen.logits[:1].shape:
        message = f"a single image gives shape {tuple(seen.alone.shape)} instead of {tuple(seen.logits[:1].shape)}"
        return Finding("batch", "error", message, "does the forward call squeeze() without a dimension?")
    beside, alone = gap(seen.logits[: len(seen.mixed)], seen.mixed), gap(seen.logits[:1], seen.alone)
    evidence = {"beside_others": finite_number(beside), "alone": finite_number(alone), "spread": seen.spread}
    if beside > max(seen.exact, 3 * seen.noise) or alone > max(DEPENDS * seen.spread, seen.rounding, 3 * seen.noise):
        message = f"the logits of an image change by up to {max(beside, alone):.2g} with the other images of the batch"
        return Finding("batch", "error", message, hint, evidence)
    if alone > max(seen.rounding, 3 * seen.noise):
        message = f"the logits of an image alone differ by {alone:.2g} from those in a batch"
        return Finding("batch", "warn", message, "rounding of reduced precision, or a small dependence", evidence)
    message = "an image's output is its own"
    if max(beside, alone) > seen.rounding:
        message = "with other images an output differs no more than from one draw to the next"
    return Finding("batch", "pass", message, None, evidence)


def examine_buffers(changed: Sequence[str]) -> Finding:
    """Does a forward in evaluation mode leave the model as it was?"""
    if not changed:
        return Finding("buffers", "pass", "a forward leaves all buffers alone")
    named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    message = f"a forward in evaluation mode changes {named}"
    hint = "the number may depend on the order of the batches"
    return Finding("buffers", "warn", message, hint, {"buffers": list(changed)})


def examine_accuracy(seen: Seen, y: Tensor) -> Finding:
    """Is the clean accuracy above chance, by its 95 % interval? Are predictions and labels a permutation apart?"""
    n, num_classes = seen.logits.shape
    predicted = seen.logits.argmax(1)
    right = int(((predicted == y) & seen.logits.isfinite().all(1)).sum())
    found = wilson(right, n)
    evidence = {"correct": right, "n": n, "chance": 1 / num_classes}
    message = f"{right} of {n} images are classified correctly"
    if n < 2 * num_classes or n < 16 or num_classes < 2:
        return Finding("accuracy", "pass", f"{message}: too few to compare with chance", None, evidence)
    if found.low > 1 / num_classes:
        return Finding("accuracy", "pass", message, None, evidence)
    hint = "are the normalisation and the order of the classes those of the training?"
    table = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    table.index_put_((y.cpu(), predicted.cpu()), torch.ones(n, dtype=torch.int64), accumulate=True)
    if int((table.sum(0) > 0).sum()) == 1:
        hint = f"all images are class {int(predicted[0])} to it: is it trained, and are these its images?"
    elif n >= 4 * num_classes and int(table.amax(1).sum()) >= 0.7 * n and len(set(table.argmax(1).tolist())) > 1:
        hint = f"each class has mostly one prediction, 0 has {int(table[0].argmax())}: the classes are in another order"
    return Finding("accuracy", "warn", f"{message}, no more than by chance", hint, evidence)
