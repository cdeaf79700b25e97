"""torchattacks' call style: the attacks of the library with its names, arguments and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from gambeson import attacks, compat
from gambeson.core.errors import InputError
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
NAMES = [name for name in compat.__all__ if name != "AutoAttack"]


@pytest.fixture
def setting(curved_net: Net, labelled: Labelled) -> tuple[nn.Sequential, Tensor, Tensor]:
    net = curved_net()
    return net, *labelled(net, 20, wrong=2)[:2]


@pytest.mark.parametrize("name", NAMES)
def test_a_call_gives_images_in_the_ball(setting: tuple[nn.Sequential, Tensor, Tensor], name: str) -> None:
    net, x, y = setting
    settings = {"PGDL2": {"eps": 0.1, "alpha": 0.02}, "Square": {"n_queries": 60}}.get(name, {"eps": 0.02})
    atk = getattr(compat, name)(net, **settings)
    x_adv = atk(x, y)
    threat: Threat = L2(0.1) if name == "PGDL2" else Linf(settings.get("eps", 8 / 255))
    assert x_adv.shape == x.shape
    assert not x_adv.requires_grad
    assert float(threat.distance(x_adv, x).max()) <= float(threat.eps) * (1 + 1e-9)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    right = [int((net(images).argmax(1) == y).sum()) for images in (x, x_adv)]
    assert right[1] < right[0] == 18


def test_deterministic_ones_equal_the_library(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    batch = Batch(x, y, torch.arange(20))
    rng = torch.Generator()
    assert torch.equal(compat.FGSM(net, eps=0.03)(x, y), attacks.fgsm()(net, batch, Linf(0.03), rng))
    pgd = attacks.PGD(steps=4, step_size=0.01, start=attacks.Zero())
    assert torch.equal(compat.PGD(net, 0.03, 0.01, 4, random_start=False)(x, y), pgd(net, batch, Linf(0.03), rng))
    l2 = compat.PGDL2(net, 0.3, 0.1, 4, random_start=False)(x, y)
    pgd = attacks.PGD(steps=4, step_size=0.1, start=attacks.Zero())
    assert torch.equal(l2, pgd(net, batch, L2(0.3), rng))


def test_every_call_draws_other_numbers_and_a_new_object_the_same(
    setting: tuple[nn.Sequential, Tensor, Tensor],
) -> None:
    net, x, y = setting
    atk = compat.PGD(net, eps=0.01)
    first, second = atk(x, y), atk(x, y)
    assert not torch.equal(first, second)
    assert torch.equal(compat.PGD(net, eps=0.01)(x, y), first)
    assert not torch.equal(compat.TPGD(net)(x), x)


def test_normalised_images_are_refused(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\]"):
        compat.PGD(net)(x - 0.5, y)


def test_labels_and_images_that_do_not_fit_are_refused(setting: tuple[nn.Sequential, Tensor, Tensor]) -> None:
    net, x, y = setting
    for images, labels, said in (
        (x, y + 100, "labels must be integers in"),
        (x, y[:3], "need images"),
        ((255 * x).to(torch.uint8), y, "images must be floating-point"),
    ):
        with pytest.raises(InputError, match=said):
            compat.PGD(net)(images, labels)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("set_normalization_used", ([0.5], [0.25]), "the model normalises inside"),
        ("set_mode_targeted_by_label", (), "targeted modes are not covered"),
        ("set_mode_targeted_by_function", (lambda x, y: y,), "targeted modes are not covered"),
        ("set_mode_targeted_random", (), "targeted modes are not covered"),
        ("set_mode_targeted_least_likely", (), "targeted modes are not covered"),
    ],
)
def test_modes_that_are_not_covered_say_so(
    method: str, arguments: tuple[object, ...], message: str, setting: tuple[nn.Sequential, Tensor, Tensor]
) -> None:
    with pytest.raises(InputError, match=message):
        getattr(compat.PGD(setting[0]), method)(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_and_defaults_are_theirs(name: str) -> None:
    package = pytest.importorskip("torchattacks")
    theirs = inspect.signature(getattr(package, name).__init__).parameters
    ours = inspect.signature(getattr(import_module("gambeson.compat"), name).__init__).parameters
    for key, parameter in ours.items():
        if key not in ("self", "model"):
            assert theirs[key].default == parameter.default, key
