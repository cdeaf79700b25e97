"""Checkpoints: one safetensors file each, tensors and a JSON header, replaced atomically; no pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from gambeson.core.digests import digest_of
from gambeson.core.errors import CheckpointError
from gambeson.core.parameters import misfits

FORMAT = 1
"""Version of the layout."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a checkpoint so that `path` holds either the old or the new one, whole, at every moment.

    Args:
        path: Target; its folder exists.
        tensors: Tensors by name.
        header: Anything JSON can say; floats come back to the bit.

    Raises:
        CheckpointError: The file cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    try:
        save_file(owned, partial, metadata={"gambeson": json.dumps({"format": FORMAT, **header})})
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error}", hint="is the disk full, or the folder read-only?"
        ) from None


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint.

    Raises:
        CheckpointError: Missing, truncated, not written by gambeson, or of another format version.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}", hint="the run has not come that far, or the file was moved")
    try:
        with safe_open(path, framework="pt") as file:
            header = _header(file.metadata(), path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({size:,} bytes): {error}",
            hint="it was truncated or is no safetensors file; the run's other checkpoints can still be evaluated",
        ) from None
    return tensors, header


def section(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix/`, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: Path) -> None:
    """Load `weights` into `model`, or say everything that does not fit.

    Raises:
        CheckpointError: Missing, unexpected or differently shaped tensors, all listed; the model is then unchanged.
    """
    wrong = misfits(weights, model.state_dict())
    if wrong:
        raise CheckpointError(
            f"{source} does not fit the model: {'; '.join(wrong)}",
            hint="is it a checkpoint of another model, width or number of classes?",
        )
    model.load_state_dict(dict(weights))


def optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, `{"conv1.weight/momentum_buffer": ...}`; `names` is by `id(p)`."""
    return {
        f"{names[id(p)]}/{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave, as copies on the parameters' devices."""
    optimizer.state.clear()
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        p = parameters[parameter]
        like = p if p.shape == value.shape else value.to(p.device)
        optimizer.state[p][key] = torch.empty_like(like, dtype=value.dtype).copy_(value)  # in the parameter's layout


def read_header(path: Path) -> dict[str, Any]:
    """The header alone, without reading the tensors.

    Raises:
        CheckpointError: As `load_checkpoint`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _header(file.metadata(), path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal, read in blocks.

    Raises:
        CheckpointError: There is no such file.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def weights_digest(path: Path) -> str:
    """The SHA-256 of a checkpoint's weights, in hexadecimal: their names, types, shapes and bits, whatever the header.

    Raises:
        CheckpointError: As `load_checkpoint`.
    """
    return digest_of(dict(sorted(section(load_checkpoint(path)[0], "model").items())))


def _header(metadata: dict[str, str] | None, path: Path) -> dict[str, Any]:
    if not metadata or "gambeson" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but was not written by gambeson")
    header: dict[str, Any] = json.loads(metadata["gambeson"])
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {header.get('format')}, this version reads {FORMAT}",
            hint="install the gambeson version that wrote it",
        )
    return header
