import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn

from gambeson.core.errors import GambesonWarning, InputError
from gambeson.core.types import Task
from gambeson.models import MODELS, create
from gambeson.models.vit import VisionTransformer
from gambeson.models.wide_resnet import WideResNet
from gambeson.parts import CAM
from gambeson.parts.cam import Head, Maps, Site, class_activation_maps, find_site, normalised

METHODS = ("gradcam", "xgradcam", "layercam")
quietly = pytest.mark.filterwarnings("ignore::gambeson.core.errors.GambesonWarning")


def task(size: int, channels: int = 3) -> Task:
    return Task(num_classes=7, channels=channels, size=size, mean=(0.45,) * channels, std=(0.25,) * channels)


def images(n: int, size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lived_in(model: nn.Module, size: int) -> nn.Module:
    """Scales, shifts and statistics away from their initial values."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p) * (1 if p.ndim == 1 else p.std()))
            if isinstance(model, VisionTransformer):
                p.mul_(4)  # its initial weights are small
        model.train()
        for step in range(3):
            model(images(8, size, seed=50 + step, dtype=next(model.parameters()).dtype) ** (1 + step))
    return model.eval()


class Tokens(nn.Module):
    """A transformer whose head reads the mean of the patch tokens; no class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embed(x).flatten(2).transpose(1, 2))).mean(1))


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, and three images."""
    model, x = built(name, dtype)
    return copy.deepcopy(model), x.clone()


@lru_cache
def built(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    size = {"preact-64": 64, "resnet18": 32, "preact-32": 32}.get(name, 16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "vit":
            model: nn.Module = VisionTransformer(task(size), patch=4, dim=24, depth=2, heads=2)
        elif name == "tokens":
            model = Tokens()
        elif name == "wrn":
            model = WideResNet(task(size), depth=10, width=16)
        elif name == "tiny-net":
            model = zoo.TinyNet()
        elif name == "small-cnn":
            model = create("small-cnn", task(size))
        else:
            width = 16 if name == "resnet18" else 6
            model = create("resnet18" if name == "resnet18" else "preact-resnet18", task(size), width=width)
    model = lived_in(model.to(dtype), size)
    return model, images(3, size, dtype=dtype)


NETS = ("resnet18", "preact-32", "preact-64", "wrn", "small-cnn", "vit", "tokens", "tiny-net")
CLOSED = {
    "resnet18": Site("layer4", Head("linear", None, 1)),
    "preact-32": Site("layer4", Head("linear", "bn", 1)),
    "preact-64": Site("layer4", Head("linear", "bn", 2)),
    "wrn": Site("block3", Head("fc", "bn1", 1)),
    "small-cnn": Site("layer4", Head("linear", None, 1)),
    "vit": Site("blocks.1.norm1", None),
    "tokens": Site("norm", None),
    "tiny-net": Site("conv3", None),
}
every_net = pytest.mark.parametrize("name", NETS)


def slow(
    model: nn.Module, x: Tensor, layer: str, method: str, classes: list[int] | None = None
) -> tuple[Tensor, list[int]]:
    """One image at a time, a backward from its logit through the whole network, and sums written as loops."""
    maps, chosen = [], []
    for i in range(len(x)):
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Tensor, kept: list[Tensor] = kept) -> None:
            output.retain_grad()
            kept.append(output)

        handle = model.get_submodule(layer).register_forward_hook(keep)
        with torch.enable_grad():
            logits = model(x[i : i + 1])[0]
        handle.remove()
        c = int(logits.argmax()) if classes is None else classes[i]
        logits[c].backward()
        a, g = kept[0].detach()[0], kept[0].grad
        assert g is not None
        g = g[0]
        if a.ndim == 2:  # tokens: those before the square of patches are left out
            side = int(len(a) ** 0.5)
            a, g = (t[len(t) - side * side :].T.reshape(-1, side, side) for t in (a, g))
        found = torch.zeros_like(a[0])
        for k in range(len(a)):
            if method == "gradcam":
                found += g[k].sum() / g[k].numel() * a[k]
            elif method == "xgradcam":
                found += (g[k] * a[k]).sum() / a[k].sum() * a[k] if a[k].sum() != 0 else 0
            else:
                found += g[k].clamp_min(0) * a[k]
        maps.append(found.clamp_min(0))
        chosen.append(c)
    model.zero_grad(set_to_none=True)
    return torch.stack(maps), chosen


def sites(model: nn.Module, x: Tensor) -> Site:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GambesonWarning)
        return find_site(model, x)


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Relative to the peak of each map."""
    return float(((found - expected).abs().amax((1, 2)) / expected.amax((1, 2)).clamp_min(1e-12)).max())


# --- the maps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@every_net
def test_the_maps_of_a_batch_are_those_of_a_backward_per_image(name: str, method: Any) -> None:
    model, x = build(name, torch.float64)
    site = sites(model, x)
    assert site == CLOSED[name]
    found = class_activation_maps(model, x, site, method)
    expected, classes = slow(model, x, site.layer, method)
    assert found.maps.shape == expected.shape
    assert found.maps.dtype == torch.float64
    assert largest_error(found.maps, expected) <= 1e-10
    assert found.classes.tolist() == classes
    torch.testing.assert_close(found.logits, model(x).detach(), rtol=0, atol=1e-12)
    given = [(c + 1 + i) % 7 % found.logits.shape[1] for i, c in enumerate(classes)]
    found = class_activation_maps(model, x, site, method, torch.tensor(given))
    expected, _ = slow(model, x, site.layer, method, given)
    assert largest_error(found.maps, expected) <= 1e-10
    assert found.classes.tolist() == given


@every_net
def test_maps_in_single_precision(name: str) -> None:
    model, x = build(name)
    site = sites(model, x)
    for method in ("gradcam", "layercam"):
        found = class_activation_maps(model, x, site, method).maps  # type: ignore[arg-type]
        assert found.dtype == torch.float32
        expected, _ = slow(model, x, site.layer, method)
        assert largest_error(found, expected) <= 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in NETS if CLOSED[name].head is not None])
def test_the_closed_form_is_the_backward(name: str, method: Any) -> None:
    model, x = build(name, torch.float64)
    site = sites(model, x)
    assert site.head is not None
    fast, through = (class_activation_maps(model, x, s, method) for s in (site, Site(site.layer, None)))
    torch.testing.assert_close(fast.maps, through.maps, rtol=0, atol=1e-10)
    assert torch.equal(fast.classes, through.classes)


def test_the_closed_form_makes_one_forward_and_no_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = build("preact-64")
    site = sites(model, x)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    expected = class_activation_maps(model, x, site).maps

    def no_backward(*_: Any, **__: Any) -> Any:
        raise AssertionError("a backward")

    monkeypatch.setattr(torch.autograd, "grad", no_backward)
    assert torch.equal(class_activation_maps(model, x, site).maps, expected)
    assert calls == [False, False]
    with pytest.raises(AssertionError, match="a backward"):
        class_activation_maps(model, x, Site(site.layer, None))


def test_the_backward_ends_at_the_layer() -> None:
    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise AssertionError("a backward before the layer")

    model, x = build("tiny-net")
    model.get_submodule("conv2").register_forward_hook(lambda _m, _i, output: Refuses.apply(output))
    class_activation_maps(model, x, Site("conv3", None))
    with pytest.raises(AssertionError, match="before the layer"):
        slow(model, x, "conv3", "gradcam")


@every_net
def test_grad_cam_is_captums(name: str) -> None:
    captum = pytest.importorskip("captum.attr")
    model, x = build(name, torch.float64)
    site = sites(model, x)
    if site.layer.endswith(("norm", "norm1")):
        pytest.skip("its maps are of convolutions")
    found = class_activation_maps(model, x, site)
    attribution = captum.LayerGradCam(model, model.get_submodule(site.layer))
    expected = attribution.attribute(x, target=found.classes, relu_attributions=True)[:, 0].detach()
    assert expected.max() > 0
    torch.testing.assert_close(found.maps, expected, rtol=0, atol=1e-10)


def test_grad_cam_and_xgrad_cam_are_one_map_before_a_global_average() -> None:
    """LayerCAM drops the negative weights and is another one."""
    model, x = build("resnet18", torch.float64)
    site = sites(model, x)
    grad, xgrad, layer = (class_activation_maps(model, x, site, method).maps for method in METHODS)  # type: ignore[arg-type]
    torch.testing.assert_close(grad, xgrad, rtol=0, atol=1e-10)
    assert (normalised(grad)[0] - normalised(layer)[0]).abs().max() > 0.05


def test_an_image_has_the_same_map_whatever_the_batch() -> None:
    model, x = build("wrn", torch.float64)
    site = sites(model, x)
    model.train()  # the maps are made in evaluation mode all the same
    whole = class_activation_maps(model, x, site).maps
    parts = torch.cat([class_activation_maps(model, x[i : i + 1], site).maps for i in range(3)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    assert (whole[0] - whole[1]).abs().max() > 1e-3


def test_a_channel_without_any_activity_weighs_nothing_in_xgrad_cam() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 0, 0
    found = class_activation_maps(model, images(2, 8), Site("0", None), "xgradcam")
    assert found.maps.isfinite().all()


# --- the layer -----------------------------------------------------------------------------------------------------

HEADS = {
    "preact-resnet18": Site("layer4", Head("linear", "bn", 1)),
    "preact-resnet18-tiny": Site("layer4", Head("linear", "bn", 1)),
    "resnet18": Site("layer4", Head("linear", None, 1)),
    "resnet18-tiny": Site("layer4", Head("linear", None, 1)),
    "resnet34": Site("layer4", Head("linear", None, 1)),
    "resnet34-tiny": Site("layer4", Head("linear", None, 1)),
    "small-cnn": Site("layer4", Head("linear", None, 1)),
    "vit-small": Site("blocks.11.norm1", None),
    "wrn-28-10": Site("block3", Head("fc", "bn1", 1)),
    "wrn-34-10": Site("block3", Head("fc", "bn1", 1)),
    "wrn-34-10-tiny": Site("block3", Head("fc", "bn1", 1)),
}
assert set(HEADS) == set(MODELS), "every network has a row here"


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_its_layer_and_its_closed_form(name: str) -> None:
    model = create(name, task(16), width=None if MODELS[name].width is None else 4, seed=0)
    x = images(2, 16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert find_site(model, x) == HEADS[name]
    assert len(caught) == (HEADS[name].head is None)


def test_a_stage_of_one_position_is_no_map() -> None:
    model = create("resnet18", task(8), width=4, seed=0)
    assert sites(model, images(2, 8)) == Site("layer3", None)


def vgg(*, inplace: bool) -> list[nn.Module]:
    return [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
    ]


PLAIN: dict[str, Any] = {
    "flat": (lambda i: nn.Sequential(*vgg(inplace=i), nn.Flatten(), nn.Linear(128, 7)), "3", None),
    "stages": (  # a flattened map is an average over cells of one position
        lambda i: nn.Sequential(nn.Sequential(*vgg(inplace=i)), nn.Flatten(), nn.Linear(128, 7)),
        "0",
        Head("2", None, 4),
    ),
    "average": (
        lambda i: nn.Sequential(
            nn.Sequential(*vgg(inplace=i)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 7)
        ),
        "0",
        Head("4", None, 1),
    ),
    "cells": (
        lambda i: nn.Sequential(nn.Sequential(*vgg(inplace=i)), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 7)),
        "0",
        Head("3", None, 2),
    ),
    "maximum": (
        lambda i: nn.Sequential(nn.Sequential(*vgg(inplace=i)), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 7)),
        "0",
        None,
    ),
    "two linear": (
        lambda i: nn.Sequential(
            nn.Sequential(*vgg(inplace=i)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 9), nn.ReLU(i),
            nn.Linear(9, 7),
        ),
        "0",
        None,
    ),
    "relu": (
        lambda i: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(i), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)
        ),
        "0",
        None,
    ),
    "norm and relu": (
        lambda i: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(i), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(8, 7),
        ),
        "0",
        Head("5", "1", 1),
    ),
    "norm without scale": (
        lambda i: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8, affine=False), nn.ReLU(i), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 7),
        ),
        "0",
        Head("5", "1", 1),
    ),
    "norm without relu": (
        lambda i: nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7)
        ),
        "0",
        None,
    ),
}  # fmt: skip


@quietly
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_networks(name: str, inplace: bool) -> None:
    """Working in place changes neither the layer, nor the closed form, nor the maps."""
    make, layer, head = PLAIN[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        reference = lived_in(make(False).double(), 16)
    model = make(inplace).double().eval()
    model.load_state_dict(reference.state_dict())
    x = images(3, 16, dtype=torch.float64)
    site = find_site(model, x)
    assert site == Site(layer, head)
    for method in METHODS:
        found = class_activation_maps(model, x, site, method).maps  # type: ignore[arg-type]
        torch.testing.assert_close(found, slow(reference, x, layer, method)[0], rtol=0, atol=1e-10)


@quietly
def test_a_linear_layer_that_does_more_has_no_closed_form() -> None:
    class Cosine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.head = Cosine(8, 7, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)))

    model, x = Net().double(), images(3, 8, dtype=torch.float64)
    site = find_site(model, x)
    assert site == Site("conv", None)
    torch.testing.assert_close(class_activation_maps(model, x, site).maps, slow(model, x, "conv", "gradcam")[0])


@quietly
def test_a_norm_without_statistics_has_no_closed_form() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 7),
    )
    assert find_site(model, images(3, 8)) == Site("0", None)


@quietly
def test_features_that_are_zero_do_not_pass_for_pooled_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 7))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    assert find_site(model, images(3, 8)) == Site("0", None)


@quietly
@pytest.mark.parametrize("name", ["vit", "tokens"])
def test_a_transformer_whose_head_starts_at_zero_has_the_same_layer(name: str) -> None:
    model, x = build(name)
    head = model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    nn.init.zeros_(head.weight)
    assert find_site(model, x) == CLOSED[name]


@quietly
def test_a_layer_of_ones_own() -> None:
    model, x = build("resnet18", torch.float64)
    site = find_site(model, x, "layer3.1.conv2")
    assert site == Site("layer3.1.conv2", None)
    found = class_activation_maps(model, x, site)
    assert found.maps.shape == (3, 8, 8)
    torch.testing.assert_close(found.maps, slow(model, x, "layer3.1.conv2", "gradcam")[0], rtol=0, atol=1e-10)
    vit, x = build("vit", torch.float64)
    assert find_site(vit, x, "blocks.0") == Site("blocks.0", None)
    assert find_site(vit, x, "patch_embed") == Site("patch_embed", None)


def test_the_closed_form_of_a_layer_of_ones_own_is_found_too() -> None:
    model, x = build("resnet18")
    assert find_site(model, x, "layer4.1") == Site("layer4.1", Head("linear", None, 1))


@pytest.mark.parametrize("name", ["tiny-net", "vit"])
def test_the_backward_is_announced_once(name: str) -> None:
    model, x = build(name)
    layer = CLOSED[name].layer
    with pytest.warns(GambesonWarning, match=f"class-activation maps of '{layer}': what follows it is not") as caught:
        site = find_site(model, x)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        class_activation_maps(model, x, site)


@pytest.mark.parametrize("name", [name for name in NETS if CLOSED[name].head is not None])
def test_the_closed_form_needs_no_warning(name: str) -> None:
    model, x = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        site = find_site(model, x)
        class_activation_maps(model, x, site)
    assert site == CLOSED[name]


@pytest.mark.parametrize(
    ("name", "layer", "said"),
    [
        ("resnet18", "layr4", "the model has no layer 'layr4'\nhint: did you mean layer4 or layer4.1 or layer4.0?"),
        ("resnet18", "", "the model has no layer ''\nhint: known: "),
        (
            "resnet18",
            "linear",
            "the layer 'linear' has no spatial extent: it returns (2, 7)\nhint: layers with one: normalize,",
        ),
        ("wrn", "block1.layer.0.shortcut", "the model has no layer 'block1.layer.0.shortcut'"),
        ("vit", "head", "the layer 'head' has no spatial extent: it returns (2, 7)\nhint: layers with one: normalize"),
    ],
)
def test_a_layer_that_cannot_be_used_is_refused(name: str, layer: str, said: str) -> None:
    model, x = build(name)
    with pytest.raises(InputError) as error:
        find_site(model, x[:2], layer)
    assert str(error.value).startswith(said)


def test_a_layer_that_is_not_run_is_refused() -> None:
    model, x = build("tiny-net")
    model.add_module("spare", nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="'spare' has no spatial extent: it returns nothing in this forward"):
        find_site(model, x, "spare")


def test_a_model_without_a_spatial_map_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="the model has no spatial feature map"):
        find_site(model, images(2, 8))


def test_another_method_is_refused() -> None:
    with pytest.raises(
        InputError, match="unknown class-activation map 'scorecam'\nhint: known: gradcam, xgradcam, lay"
    ):
        CAM("scorecam")  # type: ignore[arg-type]


# --- the model comes back ------------------------------------------------------------------------------------------


def condition(model: nn.Module) -> list[Any]:
    return [
        [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
        [m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
    ]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    before, state = condition(model), {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    yield
    assert condition(model) == before
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


@quietly
@every_net
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, x = build(name)
    model.train()
    modules = [m for m in model.modules() if next(m.children(), None) is None]
    modules[1].eval()
    next(model.parameters()).requires_grad_(False)
    with untouched(model):
        site = find_site(model, x)
        for chosen in (site, Site(site.layer, None)):
            for method in METHODS:
                maps = class_activation_maps(model, x, chosen, method)  # type: ignore[arg-type]
                assert not any(t.requires_grad for t in maps)
    with untouched(model), pytest.raises(InputError):
        find_site(model, x, "nowhere")
    assert not x.requires_grad
    assert x.grad is None


class Stumbles(nn.Module):
    """A network that fails after its last convolution, on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.conv(x))).mean((2, 3))
        if self.fails:
            raise ZeroDivisionError
        return self.linear(out)


def test_the_model_is_left_as_it_was_when_its_forward_fails() -> None:
    model, x = Stumbles(), images(2, 8)
    site = find_site(model, x)
    assert site == Site("conv", Head("linear", "norm", 1))
    model.fails = True
    with untouched(model):
        for call in (
            lambda: find_site(model, x),
            lambda: class_activation_maps(model, x, site),
            lambda: class_activation_maps(model, x, Site("conv", None)),
        ):
            with pytest.raises(ZeroDivisionError):
                call()


@quietly
def test_maps_can_be_made_where_gradients_are_off() -> None:
    model, x = build("tiny-net")
    with torch.no_grad():
        site = find_site(model, x)
        found = class_activation_maps(model, x, site)
    assert isinstance(found, Maps)
    torch.testing.assert_close(found.maps, slow(model, x, "conv3", "gradcam")[0])


# --- normalisation -------------------------------------------------------------------------------------------------


def test_maps_are_scaled_to_the_unit_interval_and_dead_ones_are_zero() -> None:
    maps = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(0)) * 40 + 2
    maps[1] = 0
    maps[2] = 7.5
    maps[3, 1, 1] = torch.nan
    maps[4, 0, 0] = torch.inf
    before = maps.clone()
    scaled, dead = normalised(maps)
    assert dead.tolist() == [False, True, True, True, True, False]
    assert not scaled[1:5].any()
    for i in (0, 5):
        assert scaled[i].min() == 0
        assert scaled[i].max() == 1
        expected = (maps[i] - maps[i].min()) / (maps[i].max() - maps[i].min())
        torch.testing.assert_close(scaled[i], expected)
    assert torch.equal(maps.nan_to_num(), before.nan_to_num())
    assert not scaled.isnan().any()


def test_the_smallest_difference_is_a_map() -> None:
    maps = torch.full((1, 2, 2), 1e-20)
    maps[0, 1, 0] = 2e-20
    scaled, dead = normalised(maps)
    assert scaled[0].tolist() == [[0, 0], [1, 0]]
    assert not dead.any()


class Patches(nn.Module):
    """Patches of 4 pixels as tokens, `prefix` others before them, LayerNorm, mean of the patches, linear."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.new_ones(len(x), self.prefix, 6), tokens], 1))
        return self.head(tokens[:, self.prefix :].square().mean(1))


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("height", "width"), [(24, 32), (16, 32), (32, 16), (16, 16)])
def test_tokens_become_a_grid_of_the_images_proportions(height: int, width: int, prefix: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Patches(prefix).double()
        x = torch.rand(2, 3, height, width, dtype=torch.float64)
    with pytest.warns(GambesonWarning):
        site = find_site(model, x)
    found = class_activation_maps(model, x, site)
    assert site.layer == "norm"
    assert found.maps.shape == (2, height // 4, width // 4)

    seen = []
    handle = model.norm.register_forward_hook(lambda _m, _i, output: seen.append(output))
    logits = model(x)
    handle.remove()
    (grad,) = torch.autograd.grad(logits.gather(1, logits.argmax(1)[:, None]).sum(), seen)
    own, slopes = seen[0][:, prefix:], grad[:, prefix:]
    expected = (own @ slopes.mean(1)[..., None])[..., 0].relu().unflatten(1, (height // 4, width // 4))
    torch.testing.assert_close(found.maps, expected.detach(), rtol=1e-10, atol=1e-12)


def test_tokens_without_a_grid_are_refused() -> None:
    with pytest.raises(InputError, match="13 tokens make no grid of the proportions of 8x23 images"):
        find_site(nn.Sequential(Patches(3)), torch.rand(1, 3, 8, 23))
