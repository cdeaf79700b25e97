"""Former, middle and latter layers of any model, as the analyses of catastrophic overfitting divide them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from gambeson.core.errors import InputError, nearest
from gambeson.core.parameters import layer_weights

PARTS = ("former", "middle", "latter", "whole")
"""Groups by name; every single layer is one too."""

_SHORTCUT = re.compile(r"shortcut|downsample|skip|proj_in")


def main_layers(model: nn.Module) -> tuple[str, ...]:
    """The weights on the main path, from the input to the output, without shortcuts and without the last layer.

    Of `layer_weights`, those whose name is not that of a shortcut, and not the last one, the classifier.
    PreActResNet-18 and ResNet-18 have 17: the stem, and the 3x3 convolutions of the blocks, as LAP's analysis numbers
    them.

    Raises:
        InputError: Fewer than 3 remain.
    """
    names = [name for name in layer_weights(model) if not _SHORTCUT.search(name)][:-1]
    if len(names) < 3:
        raise InputError(f"former, middle and latter layers need at least 3 on the main path, got {len(names)}")
    return tuple(names)


def layer_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The weights of `former`, `middle`, `latter` and `whole`, by name.

    Of 17 layers the first 5 are former and the last 4 latter, as in LAP's analysis; of other numbers the same shares,
    rounded, at least one each. `whole` has all of `layer_weights`, shortcuts and classifier too.

    References:
        Lin, Yu, Han, Su, Liu, "Layer-aware analysis of catastrophic overfitting: revealing the pseudo-robust shortcut
        dependency", ICML 2024, https://arxiv.org/abs/2405.16262.
    """
    names = main_layers(model)
    first, last = max(1, round(len(names) * 5 / 17)), max(1, round(len(names) * 4 / 17))
    return {
        "former": names[:first],
        "middle": names[first : len(names) - last],
        "latter": names[len(names) - last :],
        "whole": tuple(layer_weights(model)),
    }


def parse_groups(model: nn.Module, text: str) -> dict[str, tuple[str, ...]]:
    """Groups from a list such as `conv1,former,whole`.

    `five` stands for five single layers spread over the depth, `layers` for every single layer, shortcuts and the
    classifier too. A layer is named with or without `.weight`.

    Returns:
        The names of the weights by group, in the order of the list.

    Raises:
        InputError: A name that is neither a group nor a layer, or none.
    """
    known, weights = layer_groups(model), list(layer_weights(model))
    found: dict[str, tuple[str, ...]] = {}
    for word in [word.strip() for word in text.split(",") if word.strip()]:
        if word == "five":
            found |= {short(name): (name,) for name in spread(main_layers(model), 5)}
        elif word == "layers":
            found |= {short(name): (name,) for name in weights}
        elif word in known:
            found[word] = known[word]
        elif (name := word if word in weights else f"{word}.weight") in weights:
            found[short(name)] = (name,)
        else:
            raise InputError(
                f"no layer and no group {word!r}", hint=nearest(word, [*PARTS, "five", "layers", *map(short, weights)])
            )
    if not found:
        raise InputError("no groups of layers were named", hint=f"such as {', '.join(PARTS)}, five, or a layer's name")
    return found


def spread(names: tuple[str, ...], count: int) -> tuple[str, ...]:
    """So many of the names, evenly from the first to the last; all where there are fewer.

    Examples:
        >>> spread(tuple("abcdefghi"), 3)
        ('a', 'e', 'i')
    """
    if len(names) <= count:
        return names
    return tuple(names[round(k * (len(names) - 1) / (count - 1))] for k in range(count))


def short(name: str) -> str:
    """A weight's layer: the name without `.weight`."""
    return name.removesuffix(".weight")


def sizes(model: nn.Module, groups: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """How many weights every group has."""
    weights = layer_weights(model)
    return {group: sum(weights[name].numel() for name in names) for group, names in groups.items()}
