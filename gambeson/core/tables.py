"""Tables of tables, as settings are kept: flat, and what two of them say differently."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A table of tables as one table.

    Examples:
        >>> flat({"settings": {"lr": 0.1}, "seed": 0})
        {'settings.lr': 0.1, 'seed': 0}
    """
    result: dict[str, Any] = {}
    for key, value in table.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


def differences(there: Mapping[str, Any], here: Mapping[str, Any], show: Callable[[Any], str] = repr) -> list[str]:
    """What two tables of tables say differently, a sentence each.

    Examples:
        >>> differences({"settings": {"lr": 0.1}}, {"settings": {"lr": 0.2}})
        ['settings.lr is 0.1 there, 0.2 here']
    """
    theirs, ours = flat(there), flat(here)
    return [
        f"{key} is {show(theirs.get(key))} there, {show(ours.get(key))} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
    ]
