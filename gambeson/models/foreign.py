"""Other people's checkpoints: reading them without running their code, and their names in ours."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from gambeson.core.errors import CheckpointError, GambesonWarning, InputError, nearest
from gambeson.core.parameters import misfits
from gambeson.core.types import Task
from gambeson.models import MODELS, create

__all__ = ["KEYS", "Fitted", "find_weights", "fit_names", "fitting_models", "read_content", "read_weights"]

KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "model_state",
    "ema_state_dict",
    "model_ema",
    "ema",
    "weights",
    "params",
    "best",
    "last",
)
"""Where training scripts customarily keep the state dict, in the order in which one is taken."""

_MEAN, _STD = ("mean", "mu"), ("std", "sigma")
_UNUSED = ("sub_block1.",)
"""Stages that releases build and never run: TRADES wideresnet.py, PART, RiFT wide_resnet.py:84."""


@dataclass(frozen=True)
class Fitted:
    """A state dict in the names of one of our networks, and what was done to it.

    Attributes:
        weights: The model's state dict: its names, shapes and types.
        renamed: New name by old name, where they differ.
        dropped: What was left out, by its old name: constants of the normalisation, and stages that never run.
        mean: The means that the checkpoint normalises with, one per channel (or one for all), or None if it holds none.
        std: The standard deviations, likewise.
    """

    weights: dict[str, Tensor]
    renamed: dict[str, str]
    dropped: dict[str, Tensor]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def read_weights(path: Path, *, key: str | None = None) -> dict[str, Tensor]:
    """The state dict of a checkpoint, under its own names.

    Args:
        path: A `.safetensors` file, or one that `torch.save` wrote (`.pt`, `.pth`, `.pt.tar`, `.bin`).
        key: Where in the file the state dict is, such as `net` or, one inside the other, `last.model`; by default the
            first of `KEYS` that has one, or the file as a whole.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        CheckpointError: No such file, damaged, one that can only be read by running code, or without a state dict.

    Warns:
        GambesonWarning: Several state dicts are in the file; it says which was taken.
    """
    return find_weights(read_content(path), path, key=key)[1]


def read_content(path: Path) -> dict[str, Any]:
    """All that a checkpoint holds, tables inside tables; no code of the file is run.

    Args:
        path: As in `read_weights`. Names with a slash in a safetensors file, as gambeson writes them, make tables.

    Returns:
        The content; tensors are on the CPU.

    Raises:
        CheckpointError: No such file, damaged, not a table, or one that can only be read by running code.
    """
    if not path.is_file():
        hint = "name a file in its checkpoints folder" if (path / "run.json").is_file() else None
        raise CheckpointError(f"there is no file {path}", hint=hint)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a table of tensors", hint="save model.state_dict()"
        )
    return {str(name): value for name, value in content.items()}


def find_weights(
    content: Mapping[str, Any], source: Path, *, key: str | None = None
) -> tuple[str | None, dict[str, Tensor]]:
    """The state dict in the content of a checkpoint.

    Args:
        content: From `read_content`.
        source: The file, for messages.
        key: As in `read_weights`.

    Returns:
        The key under which it was found, None for the content as a whole, and the state dict.

    Raises:
        CheckpointError: There is none, or several, none of them at a customary place.
        InputError: There is none under `key`.

    Warns:
        GambesonWarning: Several fit; it says which was taken.
    """
    if key is not None:
        return key, _at(content, source, key)
    if _is_state(content):
        return None, dict(content)
    found = [name for name, value in content.items() if _is_state(value)]
    customary = [name for name in KEYS if name in found]
    if not found:
        inside = [
            f"{name}.{k}" for name, value in content.items() if isinstance(value, Mapping) for k in _states(value)
        ]
        hint = f"choose one: {', '.join(inside)}" if inside else "save {'state_dict': model.state_dict()} alone"
        raise CheckpointError(f"{source} has no state dict: its keys are {_some(content)}", hint=hint)
    if len(found) > 1 and not customary:
        raise CheckpointError(f"{source} holds several state dicts", hint=f"choose one: {', '.join(found)}")
    taken = customary[0] if customary else found[0]
    if len(found) > 1:
        others = ", ".join(name for name in found if name != taken)
        warnings.warn(
            f"{source} holds several state dicts; {taken} was taken, not {others}", GambesonWarning, stacklevel=2
        )
    return taken, dict(content[taken])


def fit_names(weights: Mapping[str, Tensor], model: nn.Module, source: Path) -> Fitted:
    """A foreign state dict in the names of `model`; what cannot be understood is refused, all of it at once.

    Four rules, none of which knows a particular release:

    1. Wrappers: the prefix below which most names are the model's is taken off (`module.`, `model.`, `1.module.`).
    2. Spellings: `downsample.0`, `shortcut.0`, `shortcut` and `convShortcut` are one layer.
    3. The last layer: if one matrix of the model and one of the file are left over, and they and their biases have the
       same shapes, they are each other.
    4. Left out, and reported: constants of the normalisation (`mean` and `std`, or `mu` and `sigma`), which in our
       networks belong to the task; `sub_block1`, which releases build and never run; the counter of an averaged model.

    A missing `num_batches_tracked` is 0: it matters to no output. Names say nothing of what a network computes: where
    shortcuts branch off, the activation, the padding. Compare the clean accuracy with the published one.

    Args:
        weights: From `read_weights`.
        model: The network.
        source: The file, for messages.

    Returns:
        The weights under the model's names, and what was renamed and dropped.

    Raises:
        CheckpointError: Tensors are missing, unexpected, differently shaped or not finite (the first of each), or there
            are two normalisations.
    """
    fitted, wrong = _fit(weights, model.state_dict(), source)
    wrong += [
        f"{name} has {bad} values that are NaN or infinite"
        for name, t in fitted.weights.items()
        if t.is_floating_point() and (bad := int((~t.isfinite()).sum()))
    ]
    if wrong:
        said = "; ".join(_shortened(wrong))
        raise CheckpointError(f"{source} does not fit the model: {said}", hint=_hint(weights, model, wrong))
    return fitted


def fitting_models(weights: Mapping[str, Tensor], task: Task) -> list[tuple[str, int | None]]:
    """The networks of `MODELS` that a foreign state dict fits, by names and shapes.

    Args:
        weights: From `read_weights`.
        task: The data.

    Returns:
        Name and width of each; None is the papers' width.
    """
    found: list[tuple[str, int | None]] = []
    stages = [
        t.shape[0] for name, t in weights.items() if re.search(r"\b(layer1|block1\.layer)\.0\.conv1\.weight", name)
    ]
    for name, entry in MODELS.items():
        width = stages[0] if stages and entry.width not in (None, stages[0]) else None
        try:
            with torch.device("meta"):
                own = create(name, task, width=width).state_dict()
            if not _fit(weights, own, Path())[1]:
                found.append((name, width))
        except (CheckpointError, InputError):  # InputError: no such network for this task
            continue
    return found


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({path.stat().st_size:,} bytes): {error}",
            hint="it was truncated, or is of another kind",
        ) from None
    content: dict[str, Any] = {}
    for name, tensor in tensors.items():
        section, slash, rest = name.partition("/")
        if slash:
            content.setdefault(section, {})[rest] = tensor
        else:
            content[name] = tensor
    return content


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's about pickle protocols: an error says what matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can fail anywhere
        text = str(error)
        asked = re.findall(r"GLOBAL ([\w.]+)", text)
        if "Weights only load failed" in text and asked:
            raise CheckpointError(
                f"{path} can only be read by running code that it names ({', '.join(dict.fromkeys(asked))}), which is"
                " refused: a pickle can do anything",
                hint="if you trust its source, convert it once, where its code is installed:"
                f" c = torch.load({path.name!r}, weights_only=False, map_location='cpu'), then"
                " torch.save(c['state_dict'], 'weights.pt'), or c.state_dict() if it is a whole model",
            ) from None
        first = (text.partition("WeightsUnpickler error: ")[2] or text).strip().splitlines()
        reason = f"{type(error).__name__}: {first[0] if first else ''}"
        raise CheckpointError(
            f"{path} is not a whole file of torch.save ({path.stat().st_size:,} bytes): {reason[:200]}",
            hint="it was truncated, or is of another kind: a plain pickle, which is not read, or safetensors, which"
            " ends in .safetensors",
        ) from None


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(t, Tensor) for t in value.values())


def _states(content: Mapping[Any, Any]) -> list[str]:
    return [str(name) for name, value in content.items() if _is_state(value)]


def _at(content: Mapping[str, Any], source: Path, key: str) -> dict[str, Tensor]:
    here: Any = content
    done: list[str] = []
    for part in [key] if key in content else key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            where = f" under {'.'.join(done)}" if done else ""
            known = list(map(str, here)) if isinstance(here, Mapping) else []
            hint = nearest(part, known) if known and len(known) < 50 else None
            raise InputError(f"{source} has no key {part!r}{where}", hint=hint)
        here = here[part]
        done.append(part)
    if not _is_state(here):
        states = _states(content)
        raise InputError(
            f"what {source} has under {key} is not a state dict",
            hint=f"state dicts are under {', '.join(states)}" if states else None,
        )
    return dict(here)


def _fit(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], source: Path) -> tuple[Fitted, list[str]]:
    """The weights as far as they fit, and what does not."""
    names = {_spelling(name): name for name in own}
    rest = {name: t for name, t in weights.items() if name not in own}
    constants = {kind: _constants(rest, kind) for kind in (_MEAN, _STD)}
    dropped = {name: t for found in constants.values() for name, t in found.items()}
    mean, std = (_one_normalisation(found, source) for found in constants.values())
    prefix = _prefix([name for name in weights if name not in dropped], names)
    taken: dict[str, Tensor] = {}
    old: dict[str, str] = {}
    doubled: list[str] = []
    for name, tensor in weights.items():
        if name in dropped:
            continue
        bare = name[len(prefix) :] if name.startswith(prefix) else name
        new = names.get(_spelling(bare), bare) if name.startswith(prefix) else name
        if new not in own and (bare.startswith(_UNUSED) or name.rpartition(".")[2] == "n_averaged"):
            dropped[name] = tensor
            continue
        if new in taken:  # two spellings of one layer
            doubled.append(f"{name} and {old[new]} are both {new}")
            continue
        taken[new], old[new] = tensor, name
    for there, here in _last_layer(taken, own).items():
        taken[here], old[here] = taken.pop(there), old.pop(there)
    for name, tensor in own.items():
        if name not in taken and name.endswith("num_batches_tracked"):
            taken[name] = torch.zeros_like(tensor)
    wrong = doubled + misfits(taken, own)
    typed = {name: taken[name].detach().to(t.dtype) for name, t in own.items() if name in taken}
    renamed = {before: after for after, before in old.items() if before != after and after in own}
    return Fitted(typed, renamed, dropped, mean, std), wrong


def _spelling(name: str) -> str:
    """One spelling for the layer of a shortcut that projects: `shortcut.0`, and `shortcut.1` for its BatchNorm."""
    name = re.sub(r"\b(downsample|convShortcut)\b", "shortcut", name)
    return re.sub(r"\bshortcut\.(?=\D)", "shortcut.0.", name)


def _constants(weights: Mapping[str, Tensor], words: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors that are called one of the `words`, and are one number per channel (1 or 3) or one for all."""
    return {
        name: t
        for name, t in weights.items()
        if name.rpartition(".")[2] in words and t.is_floating_point() and t.numel() in (1, 3)
    }


def _one_normalisation(found: Mapping[str, Tensor], source: Path) -> tuple[float, ...] | None:
    values = {tuple(float(f"{v:.7g}") for v in t.flatten().tolist()) for t in found.values()}
    if len(values) > 1:
        raise CheckpointError(
            f"{source} normalises twice, or differently in different places: {', '.join(found)}",
            hint="keep the one that its network uses, and save the state dict again",
        )
    return values.pop() if values else None


def _prefix(names: list[str], known: Mapping[str, str]) -> str:
    """The wrapper's prefix: the one below which most names are known, the shortest of those."""
    votes: dict[str, int] = {}
    for name in names:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        for start in starts:
            if _spelling(name[start:]) in known:
                votes[name[:start]] = votes.get(name[:start], 0) + 1
    return min(votes, key=lambda prefix: (-votes[prefix], len(prefix)), default="")


def _last_layer(taken: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, str]:
    """Old and new names of the linear layer that alone is left over on both sides."""

    def layers(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, list[tuple[str, torch.Size]]]:
        left = [name for name, t in ours.items() if name not in theirs and t.ndim == 2 and name.endswith(".weight")]
        parts = {name: (name, name.removesuffix("weight") + "bias") for name in left}
        return {
            name.removesuffix("weight"): [(n[-4:], ours[n].shape) for n in pair if n in ours]
            for name, pair in parts.items()
        }

    there, here = layers(taken, own), layers(own, taken)
    if len(there) != 1 or list(there.values()) != list(here.values()):
        return {}
    (before, shapes), after = next(iter(there.items())), next(iter(here))
    return {before + part: after + part for part in (("weight", "bias") if len(shapes) == 2 else ("weight",))}


def _hint(weights: Mapping[str, Tensor], model: nn.Module, wrong: list[str]) -> str:
    finite = [line for line in wrong if "NaN" not in line]
    if not finite:
        return "its training diverged, or the file is damaged"
    missing = sum(line.startswith("missing") for line in wrong)
    if missing > len(model.state_dict()) / 2:
        return (
            "it is of another architecture; known are the networks of the releases of RiFT, TRADES, AWP, PART, LAP and"
            f" kuangliu's pytorch-cifar: {', '.join(MODELS)}"
        )
    return "is it of another model, width, image size or number of classes?"


def _shortened(wrong: list[str]) -> list[str]:
    """What does not fit: the first five missing and unexpected names each, the first twenty of everything else."""
    kinds: dict[str, list[str]] = {"missing": [], "unexpected": [], "": []}
    for line in wrong:
        kinds[kind if (kind := line.partition(" ")[0]) in kinds else ""].append(line)
    shown: list[str] = []
    for kind, lines in kinds.items():
        count = 5 if kind else 20
        shown += lines[:count]
        if len(lines) > count:
            shown.append(f"and {len(lines) - count} more {kind}".rstrip())
    return shown


def _some(content: Mapping[str, Any], count: int = 12) -> str:
    names = [str(name) for name in content]
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
