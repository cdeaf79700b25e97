"""Why runs cannot be compared as they were evaluated, and the commands after which they can."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gambeson.engine.run import Run

Outcomes = Mapping[str, Mapping[str, Any]]
"""By key (`best pgd-50 Linf 0.2`): `y`, and `of`: checkpoint, attack, norm, eps and data of the evaluation."""

REASONS = {
    "missing": "has no evaluation of",
    "earlier weights": "has changed since it was evaluated:",
    "no checkpoint": "has no checkpoint for",
    "fewer images": "was evaluated on fewer images:",
    "other images": "was evaluated on other images:",
    "other data": "was trained on other data: no images in common for",
}
"""Why a cell of the table cannot be compared."""


def gaps(runs: Sequence[Run], outcomes: Sequence[Outcomes]) -> list[dict[str, Any]]:
    """What keeps runs from being compared: cells that are empty, or of other images than the largest of their line.

    Args:
        runs: The runs.
        outcomes: Their outcomes, one mapping per run.

    Returns:
        A dictionary each: `run`, `key` (the line), `reason` (of `REASONS`), `n` (images of the run there, None without
        any), `wanted` (images of the largest), `has` (lines of the same checkpoint and attack that the run has, with
        their images) and `command`, after which it can be compared; None where no command helps.
    """
    found = []
    for key in dict.fromkeys(key for one in outcomes for key in one):
        largest = max((number for number in range(len(runs)) if key in outcomes[number]), key=_images(outcomes, key))
        for number, run in enumerate(runs):
            reason = _reason(run, runs[largest], outcomes[number], outcomes[largest][key], key)
            if reason is None:
                continue
            own, of = outcomes[number].get(key), outcomes[largest][key]["of"]
            wanted = len(outcomes[largest][key]["y"])
            helped = reason in ("missing", "earlier weights", "fewer images")
            found.append(
                {
                    "run": str(run.path),
                    "key": key,
                    "reason": reason,
                    "n": None if own is None else len(own["y"]),
                    "wanted": wanted,
                    "has": _similar(outcomes[number], of, key),
                    "command": (of, wanted) if helped else None,
                }
            )
    return _with_commands(runs, found)


def _images(outcomes: Sequence[Outcomes], key: str) -> Any:
    return lambda number: len(outcomes[number][key]["y"])


def _reason(run: Run, other: Run, own: Outcomes, largest: Mapping[str, Any], key: str) -> str | None:
    """Why a run cannot be compared with the `other` one, whose evaluation is the largest of its line."""
    if run.call["data"]["name"] != other.call["data"]["name"]:
        return "other data"
    if key in own:
        mine, theirs = own[key]["y"], largest["y"]
        if np.array_equal(mine, theirs):
            return None
        return "fewer images" if np.array_equal(mine, theirs[: len(mine)]) else "other images"
    of = largest["of"]
    if not run.checkpoint(of["checkpoint"]).is_file():
        return "no checkpoint"
    earlier = [
        record
        for record in run.evaluations().values()
        if record["split"] == "test"
        and of["attack"] in record["accuracy"]
        and (record["checkpoint"], record["data"]) == (of["checkpoint"], of["data"])
        and (of["attack"] == "clean" or (record["norm"], record["eps"]) == (of["norm"], of["eps"]))
    ]
    return "earlier weights" if earlier else "missing"


def _similar(own: Outcomes, of: Mapping[str, Any], key: str) -> list[str]:
    return [
        f"{other}, n = {len(one['y']):,}"
        for other, one in own.items()
        if other != key and all(one["of"][name] == of[name] for name in ("checkpoint", "attack"))
    ]


def _with_commands(runs: Sequence[Run], found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the commands: one for all attacks of a run at the same checkpoint, budget, data and number of images."""
    calls = {str(run.path): run.call for run in runs}
    groups: dict[tuple[Any, ...], list[str]] = {}
    for gap in found:
        if gap["command"]:
            of, n = gap["command"]
            group = (gap["run"], of["checkpoint"], of["data"], n, of["norm"], of["eps"])
            attacks = groups.setdefault(group, [])
            attacks += [of["attack"]] * (of["attack"] not in attacks)
    for gap in found:
        if gap["command"]:
            of, n = gap["command"]
            same = (gap["run"], of["checkpoint"], of["data"], n)
            group = (*same, of["norm"], of["eps"])
            if of["attack"] == "clean":  # measured with every attack, whatever its budget
                group = next((one for one, names in groups.items() if one[:4] == same and names != ["clean"]), group)
            gap["command"] = _command(calls[gap["run"]], group, groups[group])
    return found


def _command(call: Mapping[str, Any], group: tuple[Any, ...], attacks: Sequence[str]) -> str:
    from gambeson.app.show import short

    run, checkpoint, data, n, norm, eps = group
    named = [name for name in attacks if name != "clean"] or ["clean"]
    words = ["gambeson", "evaluate", run, "--attack", ",".join(named)]
    words += ["--checkpoint", checkpoint] if checkpoint != "best" else []
    if named != ["clean"]:
        words += ["--norm", norm] if norm != call["method"].get("args", {}).get("norm", "Linf") else []
        words += ["--eps", short(eps) if "/" in short(eps) else repr(eps)]
    words += ["--data", data] if data != call["data"]["name"] else []
    return shlex.join([*words, "--test-size", str(n)])
