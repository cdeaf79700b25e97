from collections.abc import Callable

import pytest
from torch import nn

from gambeson.core.errors import InputError
from gambeson.parts import EMA
from gambeson.parts.state import AveragedWeights


def test_it_builds_a_state_with_its_values(tiny_net: Callable[..., nn.Sequential]) -> None:
    net = tiny_net()
    part = EMA(0.7, warm=False).build(net)
    assert isinstance(part, AveragedWeights)
    assert (part.decay, part.warm) == (0.7, False)
    assert part.average is not net


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=r"\(0, 1\)"):
        EMA(decay)
