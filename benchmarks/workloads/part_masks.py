"""PART's masks: class-activation maps of a batch, scaled, enlarged and drawn in jet, against one image at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.case import Bound, Case, Check, Ratio, Setup
from benchmarks.inputs import TASK, cifar_images, placed, random_images, settled
from benchmarks.references import part_masks as reference
from gambeson.core.errors import GambesonWarning
from gambeson.models import create
from gambeson.models.vit import VisionTransformer, vit_small
from gambeson.parts.cam import Site, class_activation_maps, find_site, normalised
from gambeson.parts.masks import Jet, upsample

LOOP, FORWARD = "one by one (reference)", "forward"
CLOSED, HEAD = "closed form", "backward through the head"
EQUAL = Bound(">=", 0.9999)
NOT_TRIVIAL = Bound(">=", 0.01)
FASTER = Bound(">=", 6)
CHEAP_WITHOUT_BACKWARD, CHEAP = Bound("<=", 1.2), Bound("<=", 2.5)


def cases(setup: Setup) -> Iterator[Case]:
    """ResNet-18 at the layer of the release and deeper, PreActResNet-18, and a transformer."""
    width = 64 if setup.full else 16
    noise = random_images(setup.batch_size, setup.seed)
    resnet = settled(create("resnet18", TASK, width=width, seed=setup.seed), noise)
    yield _case(f"resnet18 of width {width}", resnet, noise, "random images", setup)
    yield _case(f"resnet18 of width {width}", resnet, noise, "random images", setup, layer="layer3")
    real = cifar_images(setup.batch_size)
    if real is not None:
        resnet = settled(create("resnet18", TASK, width=width, seed=setup.seed), real)
        yield _case(f"resnet18 of width {width}", resnet, real, "images of CIFAR-10", setup)
    preact = settled(create("preact-resnet18", TASK, width=width, seed=setup.seed), noise)
    yield _case(f"preact-resnet18 of width {width}", preact, noise, "random images", setup)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(setup.seed)
        vit = vit_small(TASK) if setup.full else VisionTransformer(TASK, patch=4, dim=96, depth=12, heads=6)
    yield _case("vit-small" + ("" if setup.full else " with 96 dimensions"), vit.eval(), noise, "random images", setup)


def masks(model: nn.Module, x: Tensor, site: Site) -> Tensor:
    """The values with the full budget, bool `(N, 3, H, W)`: a dead map has none."""
    maps, dead = normalised(class_activation_maps(model, x, site).maps)
    height, width = x.shape[2:]
    return Jet()(upsample(maps, (height, width))) & ~dead.view(-1, 1, 1, 1)


def _case(what: str, net: nn.Module, x: Tensor, images: str, setup: Setup, layer: str | None = None) -> Case:
    # The release leaves the layout as it is; ours takes the one that training takes.
    as_released, x_as_released = placed(copy.deepcopy(net), x, setup.device, channels_last=False)
    model, x = placed(copy.deepcopy(net), x, setup.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GambesonWarning)  # a head without closed form is what some cases are about
        site = find_site(model, x[:2], layer)
    open_form = Site(site.layer, None)

    def forward() -> Tensor:
        with torch.no_grad():
            return model(x)

    def loop() -> Tensor:
        return reference.budgets(as_released, x_as_released, site.layer)

    ours = {HEAD: lambda: masks(model, x, open_form)}
    if site.head is not None:
        ours = {CLOSED: lambda: masks(model, x, site), **ours}
    best = next(iter(ours))
    contiguous = f"{best}, contiguous"  # the layout of the reference
    ours[contiguous] = lambda: masks(as_released, x_as_released, site)

    def guard() -> list[Check]:
        wanted = loop() > 7.5 / 255
        checks = [Check("share of values at the full budget", float(wanted.float().mean()), NOT_TRIVIAL)]
        for name, function in ours.items():
            found = function()
            assert found.shape == wanted.shape
            differing = int((found != wanted).sum())
            note = f"{differing:,} of {wanted.numel():,} differ"
            checks.append(Check(f"mask values equal, {name}", 1 - differing / wanted.numel(), EQUAL, note))
        return checks

    on_cpu = setup.device.type == "cpu"
    faster = FASTER if on_cpu and setup.batch_size >= 64 else None
    ratios = [Ratio(f"reference / {name}", LOOP, name, faster if name == best else None) for name in ours]
    for name in ours:
        cheap = CHEAP_WITHOUT_BACKWARD if name == CLOSED and on_cpu else CHEAP
        ratios.append(Ratio(f"{name} / forward", name, FORWARD, None if name == contiguous else cheap))
    title = f"part-masks: {what}, {site.layer}, {len(x)} {images}"
    return Case(title, {LOOP: loop, **ours, FORWARD: forward}, FORWARD, guard, tuple(ratios), images=len(x))
