"""What an ensemble of attacks has found so far, on disk: survives a kill, and refuses to go on with something else."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gambeson.attacks.search import Search
from gambeson.core.digests import digest_of
from gambeson.core.errors import RunError
from gambeson.core.tables import differences


@dataclass(frozen=True)
class Entry:
    """A piece of work that is done.

    Attributes:
        index: Numbers of the examples, int64 `(M,)`.
        fooled: Whether each fell, bool `(M,)`.
        x_adv: Adversarial images of those that fell, `(fooled.sum(), C, H, W)`.
        seconds: What it took.
        forwards: Images that went through the model.
        backwards: Images whose gradient was taken.
    """

    index: Tensor
    fooled: Tensor
    x_adv: Tensor
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0


class Ledger:
    """A folder with one file per piece of work, each written atomically.

    Args:
        folder: The folder; made where there is none.
        identity: What all of it depends on: weights, data, threat, seed.

    Raises:
        RunError: The folder belongs to other work; every differing field is named.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        file = folder / "identity.json"
        wanted = json.loads(json.dumps(identity))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RunError(f"{folder} is a file, not a folder", hint="choose another folder") from None
        empty = all(path.name.startswith(".identity.") for path in folder.iterdir())  # left by a kill, or being written
        if not file.is_file():  # asked after the list is made: another process may just have written it
            if not empty:
                raise RunError(
                    f"{folder} is not empty and holds no state of an evaluation", hint="choose another folder"
                )
            partial = folder / f".identity.{os.getpid()}.partial"
            partial.write_text(json.dumps(wanted, indent=2) + "\n")
            os.replace(partial, file)
        try:
            there = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}", hint="delete the folder to begin anew") from None
        if different := differences(there, wanted):
            raise RunError(
                f"{folder} holds the state of another evaluation: {'; '.join(different)}",
                hint="choose another folder, or delete this one to begin anew",
            )

    def write(self, attack: str, entry: Entry, part: str = "0") -> None:
        """Keep a piece of work.

        Args:
            attack: Its attack, with all settings, see `key_of`.
            entry: What was found.
            part: Which process writes; each has files of its own.
        """
        number = 0
        while (path := self.folder / f"{attack}-{part}-{number:05d}.safetensors").exists():
            number += 1
        partial = path.with_name(f".{path.name}.partial")
        tensors = {"index": entry.index, "fooled": entry.fooled, "x_adv": entry.x_adv}
        cost = {"seconds": entry.seconds, "forwards": entry.forwards, "backwards": entry.backwards}
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()},
            partial,
            metadata={"cost": json.dumps({"attack": attack, **cost})},
        )
        with open(partial, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(partial, path)

    def read(self, attack: str) -> Iterator[Entry]:
        """What is there of an attack.

        Raises:
            RunError: A file is damaged.
        """
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(path, framework="pt") as file:
                    cost = json.loads((file.metadata() or {})["cost"])
                    if cost.pop("attack") != attack:
                        continue
                    tensors = {name: file.get_tensor(name) for name in ("index", "fooled", "x_adv")}
            except (SafetensorError, OSError, ValueError, KeyError) as error:
                raise RunError(
                    f"{path} is damaged: {error}", hint="delete the file: its examples are then attacked again"
                ) from None
            yield Entry(**tensors, **cost)


def key_of(search: Search) -> str:
    """The name of a search with eight hexadecimal digits of its settings."""
    return f"{search.name}-{hashlib.sha256(repr(search).encode()).hexdigest()[:8]}"


def weights_digest(model: nn.Module) -> str:
    """The SHA-256 of all parameters and buffers of a model, in hexadecimal."""
    return digest_of(model.state_dict())


def digest_of_json(content: Any) -> str:
    """The SHA-256 of what JSON can say, in hexadecimal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
