"""Spectra of the layers' weights, how far they drift between checkpoints, and how they answer a perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError, UnhealthyError
from gambeson.core.parameters import layer_weights
from gambeson.diagnosis.groups import short


@dataclass(frozen=True)
class LayerSpectrum:
    """One layer's weight, as a matrix `(out, in * k * k)`.

    Attributes:
        layer: Its name.
        shape: Of the weight.
        norm: Frobenius norm.
        largest: Largest singular value, the spectral norm of the matrix.
        stable_rank: `norm^2 / largest^2`, between 1 and the rank.
        entropy_rank: `exp(H)`, H the entropy of the shares `s_i^2 / sum s^2`: how many directions carry the weight.
        values: All singular values, descending.
        drift: `|W - W'| / |W'|` to the checkpoint before; None for the first.
    """

    layer: str
    shape: tuple[int, ...]
    norm: float
    largest: float
    stable_rank: float
    entropy_rank: float
    values: tuple[float, ...]
    drift: float | None = None


def spectrum(name: str, weight: Tensor, before: Tensor | None = None) -> LayerSpectrum:
    """The spectrum of a weight, computed in float64 on the CPU.

    Args:
        name: Of the layer.
        weight: At least two dimensions; all but the first are flattened. That is the matrix of a convolution's filters,
            not the operator that it is on images.
        before: The same weight at an earlier checkpoint.

    References:
        Yoshida, Miyato, "Spectral norm regularization for improving the generalizability of deep learning", 2017,
        https://arxiv.org/abs/1705.10941 (the matrix of the filters); Rudelson, Vershynin, "Sampling from large
        matrices", JACM 2007 (stable rank); Roy, Vetterli, "The effective rank", EUSIPCO 2007 (entropy).
    """
    matrix = weight.detach().double().cpu().flatten(1)
    values = torch.linalg.svdvals(matrix)
    squares = values.square()
    total = float(squares.sum())
    shares = squares / total if total > 0 else torch.zeros_like(squares)
    entropy = float(torch.special.entr(shares).sum())
    drift = None
    if before is not None:
        old = before.detach().double().cpu().flatten(1)
        size = float(old.norm())
        drift = float((matrix - old).norm()) / size if size > 0 else float("inf")
    largest = float(values[0])
    return LayerSpectrum(
        layer=short(name),
        shape=tuple(weight.shape),
        norm=total**0.5,
        largest=largest,
        stable_rank=total / largest**2 if largest > 0 else 0.0,
        entropy_rank=float(torch.tensor(entropy).exp()) if total > 0 else 0.0,
        values=tuple(values.tolist()),
        drift=drift,
    )


@dataclass(frozen=True)
class Spectra:
    """The layers of one model at several checkpoints.

    Attributes:
        checkpoints: Their names, in order.
        layers: By checkpoint, the layers from the input to the output.
    """

    checkpoints: tuple[str, ...]
    layers: tuple[tuple[LayerSpectrum, ...], ...]

    def of(self, layer: str) -> tuple[LayerSpectrum, ...]:
        """A layer at every checkpoint.

        Raises:
            InputError: There is no such layer.
        """
        found = tuple(one for row in self.layers for one in row if one.layer == layer)
        if not found:
            raise InputError(f"no layer {layer!r}", hint=f"known: {', '.join(one.layer for one in self.layers[0])}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "checkpoints": list(self.checkpoints),
            "layers": {
                name: [asdict(one) for one in row] for name, row in zip(self.checkpoints, self.layers, strict=True)
            },
        }


def measure_spectra(models: Mapping[str, nn.Module], layers: Sequence[str] | None = None) -> Spectra:
    """Spectra of every layer at several checkpoints, and the drift from each checkpoint to the next.

    Args:
        models: Models of one architecture by the name of the checkpoint, in order.
        layers: Names of weights; all of `gambeson.core.parameters.layer_weights` by default.

    Returns:
        The spectra.

    Raises:
        InputError: No models, unknown weights, models of different layers, or weights that are not finite.

    Examples:
        >>> found = measure_spectra({"one": nn.Linear(2, 2, bias=False)})
        >>> len(found.of("weight"))
        1
    """
    if not models:
        raise InputError("spectra need at least one checkpoint")
    rows: list[tuple[LayerSpectrum, ...]] = []
    before: dict[str, Tensor] | None = None
    for checkpoint, model in models.items():
        own = {name: p.detach() for name, p in layer_weights(model).items()}
        names = list(layers) if layers is not None else list(own)
        if missing := [name for name in names if name not in own]:
            raise InputError(f"{checkpoint} has no weights {', '.join(missing)}")
        if before is not None and any(name not in before or before[name].shape != own[name].shape for name in names):
            raise InputError(f"{checkpoint} has other layers than the checkpoint before it")
        if broken := [name for name in names if not bool(own[name].isfinite().all())]:
            raise UnhealthyError(f"{checkpoint} has weights that are not finite: {', '.join(broken)}")
        rows.append(tuple(spectrum(name, own[name], before[name] if before else None) for name in names))
        before = own
    return Spectra(tuple(models), tuple(rows))
