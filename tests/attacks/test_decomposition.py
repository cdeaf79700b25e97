"""The margin decomposition attack against its procedure written out image by image."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import MD, Jobs, Retired, hunt
from gambeson.attacks.search import noise
from gambeson.core.errors import InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
SEARCH = MD(steps=9, change=4, restarts=2)


def by_hand(net: nn.Module, x: Tensor, label: int, starts: list[Tensor], threat: Threat) -> Tensor | None:
    """The first misclassified image of all rounds of the image `x`, or None."""
    for number, start in enumerate(starts):
        at = threat.project(x + start * float(threat.eps), x).clamp(0, 1)
        for i in range(SEARCH.steps + 1):
            point = at.clone().requires_grad_()
            logits = net(point)[0]
            if int(logits.argmax()) != label:
                return at
            others = torch.cat([logits[:label], logits[label + 1 :]])
            if i == 0:
                value = logits[label]
            elif i < SEARCH.change:
                value = others.max() if number % 2 else -logits[label]
            else:
                value = others.max() - logits[label]
            grad = torch.autograd.grad(value, point)[0]
            phase = (i - 1 if i <= SEARCH.change else i - SEARCH.change - 1) / (SEARCH.steps - SEARCH.change)
            alpha = 2 * float(threat.eps) * 0.5 * (1 + math.cos(phase * math.pi))
            step = grad.sign() if threat.norm == "Linf" else grad / grad.norm()
            at = threat.project(at + alpha * step, x).clamp(0, 1)
    return None


@pytest.mark.parametrize("threat", [Linf(0.01), L2(0.07)], ids=["Linf", "L2"])
def test_every_image_goes_its_way(curved_net: Net, labelled: Labelled, threat: Threat) -> None:
    net = curved_net()
    x, y, index, *_ = labelled(net, 24)
    jobs = Jobs(x, y, net(x).detach(), index, torch.zeros_like(index))
    found: dict[int, Tensor] = {}

    def report(retired: Retired) -> None:
        for number, image in zip(retired.index[retired.fooled].tolist(), retired.x_adv, strict=True):
            found[number] = image

    hunt(net, SEARCH, jobs, threat, Streams(5), report, slots=5)
    draws = [2 * noise(jobs._replace(round=index * 0 + turn), "md", Streams(5), torch.rand) - 1 for turn in range(4)]
    wanted = {i: by_hand(net, x[i : i + 1], int(y[i]), [d[i : i + 1] for d in draws], threat) for i in range(24)}
    fell = {i: image for i, image in wanted.items() if image is not None}
    assert 3 < len(fell) < 22
    assert found.keys() == fell.keys()
    for i, image in fell.items():
        torch.testing.assert_close(found[i], image[0], rtol=0, atol=1e-10)


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"restarts": 0}, {"change": 0}, {"steps": 5, "change": 5}):
        with pytest.raises(InputError, match="MD"):
            MD(**wrong)
    assert MD(restarts=3).rounds(10) == 6
