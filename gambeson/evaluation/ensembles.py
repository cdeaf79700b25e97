"""AutoAttack's ensembles: which searches, with which budgets, in which order."""

from __future__ import annotations

from collections.abc import Callable

from gambeson.attacks.apgd import AutoPGD
from gambeson.attacks.decomposition import MD
from gambeson.attacks.fab import FAB
from gambeson.attacks.search import Search
from gambeson.attacks.square import Square
from gambeson.core.errors import InputError, nearest

SEARCHES: dict[str, tuple[str, Callable[[], Search]]] = {
    "apgd-ce": ("Auto-PGD on the cross-entropy, 100 steps", lambda: AutoPGD(loss="ce")),
    "apgd-dlr": ("Auto-PGD on the difference of logits ratio, 100 steps", lambda: AutoPGD(loss="dlr")),
    "apgd-t": ("Auto-PGD towards each of the 9 nearest classes, 100 steps", lambda: AutoPGD(loss="dlr-targeted")),
    "fab": ("FAB, the nearest boundary of any class, 100 steps", lambda: FAB(targeted=False)),
    "fab-t": ("FAB towards each of the 9 nearest classes, 100 steps", lambda: FAB(targeted=True)),
    "md": ("margin decomposition: 2 rounds of 50 steps, first on one term of the margin alone", lambda: MD()),
    "square": ("Square, without gradients, 5,000 queries", lambda: Square()),
}
"""Searches by name: what each is, and AutoAttack's settings of it."""

ENSEMBLES: dict[str, tuple[str, Callable[[], tuple[Search, ...]]]] = {
    "standard": (
        "apgd-ce, apgd-t, fab-t, square",
        lambda: (AutoPGD(loss="ce"), AutoPGD(loss="dlr-targeted"), FAB(targeted=True), Square()),
    ),
    "plus": (
        "apgd-ce, apgd-dlr and fab with 5 restarts, square, apgd-t, fab-t",
        lambda: (
            AutoPGD(loss="ce", restarts=5),
            AutoPGD(loss="dlr", restarts=5),
            FAB(targeted=False, restarts=5),
            Square(),
            AutoPGD(loss="dlr-targeted"),
            FAB(targeted=True),
        ),
    ),
    "rand": (
        "apgd-ce and apgd-dlr with gradients averaged over 20 forwards, for randomised models",
        lambda: (AutoPGD(loss="ce", eot=20), AutoPGD(loss="dlr", eot=20)),
    ),
    "preview": (
        "apgd-ce, apgd-t: an upper bound of the robust accuracy, not AutoAttack",
        lambda: (AutoPGD(loss="ce"), AutoPGD(loss="dlr-targeted")),
    ),
}
"""Versions by name: what each consists of, and its searches (Croce & Hein, ICML 2020; `preview` is ours)."""


def create_ensemble(version: str, attacks: tuple[str | Search, ...] | None = None) -> tuple[Search, ...]:
    """The searches of a version, or for `custom` those in `attacks`.

    Args:
        version: A name in `ENSEMBLES`, or `custom`.
        attacks: For `custom`, names in `SEARCHES` or searches.

    Raises:
        InputError: An unknown version or attack, attacks for a named version, or none or twice the same for `custom`.

    Examples:
        >>> [search.name for search in create_ensemble("preview")]
        ['apgd-ce', 'apgd-t']
    """
    if version != "custom":
        if version not in ENSEMBLES:
            raise InputError(f"unknown version {version!r}", hint=nearest(version, [*ENSEMBLES, "custom"]))
        if attacks:
            raise InputError(f"the version {version} has its own attacks", hint="choose attacks with version='custom'")
        return ENSEMBLES[version][1]()
    if not attacks:
        raise InputError("a custom version needs attacks", hint=f"known: {', '.join(SEARCHES)}")
    for attack in attacks:
        if isinstance(attack, str) and attack not in SEARCHES:
            raise InputError(f"unknown attack {attack!r}", hint=nearest(attack, SEARCHES))
    found = tuple(SEARCHES[attack][1]() if isinstance(attack, str) else attack for attack in attacks)
    names = [search.name for search in found]
    if len(set(names)) < len(names):
        raise InputError(f"every attack of an ensemble has a name of its own, got {', '.join(names)}")
    return found


def ensemble_of(name: str) -> tuple[str, tuple[Search, ...]] | None:
    """The version and the searches that an evaluation calls `name`; None if it is no ensemble and no search.

    `autoattack` is the version `standard`; `autoattack-plus`, `autoattack-rand` and `aa-preview` are the others. The
    name of a search stands for that search alone.

    Examples:
        >>> ensemble_of("autoattack")[0], ensemble_of("square")[0], ensemble_of("pgd-10")
        ('standard', 'custom', None)
    """
    if name in SEARCHES:
        return "custom", create_ensemble("custom", (name,))
    version = NAMES.get(name)
    return (version, create_ensemble(version)) if version else None


NAMES = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    "autoattack-rand": "rand",
    "aa-preview": "preview",
}
"""What evaluations call the versions. A preview is not called AutoAttack."""
