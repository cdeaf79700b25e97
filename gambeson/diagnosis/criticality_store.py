"""Finished layers of a search for criticality, in a file from which it goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gambeson.core.errors import RunError
from gambeson.core.tables import differences
from gambeson.diagnosis.layer_search import Problem
from gambeson.diagnosis.mrc import LayerCriticality
from gambeson.engine.run import write_json


class Store:
    """Finished layers, in a file if there is one."""

    def __init__(self, path: Path | None, problem: Problem, argmin_only: bool) -> None:
        self.path = path
        self.rows: dict[str, LayerCriticality] = {}
        if path is None:
            return
        self.identity = {
            "weights": _digest(problem.model.state_dict().values()),
            "images": _digest([problem.x, problem.y]),
            "protocol": asdict(problem.protocol),
            "seed": problem.streams.seed,
            "shuffle": problem.shuffle,
            "argmin_only": argmin_only,
        }
        if path.is_file():
            self._read(path)

    def add(self, row: LayerCriticality) -> None:
        """Keep a layer."""
        self.rows[row.layer] = row
        if self.path is not None:
            rows = [asdict(one) for one in self.rows.values()]
            write_json(self.path, {"identity": self.identity, "layers": rows})

    def _read(self, path: Path) -> None:
        hint = "delete it, or name another file"
        try:
            content = json.loads(path.read_text())
            different = differences(content["identity"], self.identity)
            rows = [LayerCriticality(**{**row, "shape": tuple(row["shape"])}) for row in content["layers"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is no record of a search for criticality: {error!r}", hint=hint) from None
        if different:
            raise RunError(f"{path} belongs to another search: {'; '.join(different)}", hint=hint)
        self.rows = {row.layer: replace(row) for row in rows}


def _digest(tensors: Any) -> str:
    """A short hash of tensors."""
    digest = hashlib.blake2b(digest_size=8)
    for t in tensors:
        digest.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
