"""Loss landscapes: filter normalisation and grids against the formulas, scalars of known surfaces, and the picture."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.parameters import layer_weights
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch, Task
from gambeson.diagnosis.groups import main_layers, parse_groups
from gambeson.diagnosis.landscape import Landscape, grid_axis, input_landscape, weight_landscape
from gambeson.diagnosis.landscape_picture import draw_landscapes
from gambeson.diagnosis.probes import attacked_images, filter_normalised
from gambeson.models.resnets import preact_resnet18, resnet18
from gambeson.models.small_cnn import SmallCNN
from gambeson.models.vit import VisionTransformer

TASK = Task(num_classes=3, channels=3, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]


def ce(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def surface(loss: Tensor, axis: tuple[float, ...]) -> Landscape:
    return Landscape("a", axis, loss, (), {})


def test_every_filter_of_a_direction_has_the_norm_of_the_weights() -> None:
    rng = torch.Generator().manual_seed(0)
    weight, direction = (torch.randn(6, 3, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    weight[2], direction[4] = 0, 0
    found = filter_normalised(direction, weight)
    for f in range(6):
        wanted = 0.0 if f in (2, 4) else float(weight[f].norm())
        assert float(found[f].norm()) == pytest.approx(wanted)
        if wanted:
            assert float(nn.functional.cosine_similarity(found[f].flatten(), direction[f].flatten(), 0)) > 0.999999
    assert filter_normalised(direction[:, :, 0, 0], weight[:, :, 0, 0]).isfinite().all()


def test_a_weight_landscape_is_the_loss_at_moved_weights(curved_net: Net, labelled: Labelled) -> None:
    """The oracle: a copy of the model whose weights are written at every point."""
    model = curved_net()
    batch = labelled(model, n=10)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ticks: list[int] = []
    found = weight_landscape(
        model, batch.x, batch.y, ["0.weight", "4.weight"], axis=grid_axis(3, 0.5), batch_size=4, seed=7,
        progress=lambda: ticks.append(1),
    )  # fmt: skip
    directions = [
        {
            name: filter_normalised(
                torch.randn(
                    before[name].shape, generator=Streams(7).at(f"landscape/{name}", which), dtype=torch.float32
                ).double(),
                before[name],
            )
            for name in ("0.weight", "4.weight")
        }
        for which in range(2)
    ]
    for i, a in enumerate(found.axis):
        for j, b in enumerate(found.axis):
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for name, p in moved.named_parameters():
                    if name in directions[0]:
                        p += a * directions[0][name] + b * directions[1][name]
            assert float(found.loss[i, j]) == pytest.approx(ce(moved, batch.x, batch.y), abs=1e-12)
    assert len(ticks) == 9
    assert found.centre == pytest.approx(ce(model, batch.x, batch.y), abs=1e-12)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_layers_direction_is_the_same_in_every_group(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model)
    one = weight_landscape(model, batch.x, batch.y, ["0.weight"], axis=grid_axis(3, 1.0), dims=1)
    again = weight_landscape(model, batch.x, batch.y, ["0.weight"], axis=grid_axis(3, 1.0), dims=1)
    both = weight_landscape(model, batch.x, batch.y, ["0.weight"], axis=grid_axis(3, 1.0), dims=2)
    assert torch.equal(one.loss, again.loss)
    assert torch.allclose(both.loss[:, 1], one.loss)
    other = weight_landscape(model, batch.x, batch.y, ["0.weight"], axis=grid_axis(3, 1.0), dims=1, seed=1)
    assert not torch.allclose(other.loss, one.loss)


@pytest.mark.parametrize(
    ("build", "dims"),
    [
        (lambda: resnet18(TASK, width=16).to(memory_format=torch.channels_last), 1),
        (lambda: preact_resnet18(TASK, width=4), 1),
        (lambda: VisionTransformer(TASK, patch=4, dim=16, depth=2, heads=2), 1),
        (lambda: SmallCNN(TASK).to(memory_format=torch.channels_last), 2),
    ],
    ids=["resnet18, channels-last", "preact-resnet18", "vit", "small-cnn, channels-last"],
)
def test_what_follows_the_layers_gives_the_bits_of_the_whole_network(build: Callable[[], nn.Module], dims: int) -> None:
    """Float32 on the CPU, the same batches: no difference at any point, of single layers and of groups."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x, y = build().eval(), torch.rand(7, 3, 8, 8), torch.arange(7) % 3
    calls: list[int] = []
    model.get_submodule(next(iter(layer_weights(model))).removesuffix(".weight")).register_forward_hook(
        lambda *_: calls.append(1)
    )
    for group, layers in parse_groups(model, "five,latter,whole").items():
        found = []
        for memory in (2**30, 0):
            calls.clear()
            found.append(
                weight_landscape(
                    model, x, y, layers, axis=grid_axis(5, 1.0), dims=dims, batch_size=4, seed=1, memory=memory
                ).loss
            )
            first = group == "whole" or layers == main_layers(model)[:1]
            points = 5**dims * 2
            assert len(calls) >= points if first or not memory else len(calls) < 10, group
        assert torch.equal(found[0], found[1]), group
        assert float(found[0].max() - found[0].min()) > 1e-5


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5)])
def test_an_input_landscape_is_the_loss_at_moved_images(threat: Threat, curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model, n=7)
    found = input_landscape(model, batch.x, batch.y, threat, axis=grid_axis(3, 1.0), batch_size=3, seed=2)
    at = batch.x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), batch.y, reduction="sum"), at)
    noise = torch.randn(batch.x.shape, generator=Streams(2).at("landscape/input"), dtype=torch.float64)
    if threat.norm == "Linf":
        first, second = grad.sign(), noise.sign()
    else:
        first, second = (t / t.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for t in (grad, noise))
    for i, a in enumerate(found.axis):
        for j, b in enumerate(found.axis):
            moved = (batch.x + threat.eps * (a * first + b * second)).clamp(0, 1)
            assert float(found.loss[i, j]) == pytest.approx(ce(model, moved, batch.y), abs=1e-12)
    assert float(found.loss[2, 1]) > found.centre  # one step of FGSM


def test_the_images_are_those_of_the_attack_on_the_model_as_it_is(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model, n=9)
    clean = attacked_images(model, batch.x, batch.y, "clean", Linf(0.1), batch_size=4)
    fgsm = attacked_images(model, batch.x, batch.y, "fgsm", Linf(0.1), batch_size=4)
    assert torch.equal(clean, batch.x)
    assert float((fgsm - batch.x).abs().max()) == pytest.approx(0.1)
    assert ce(model, fgsm, batch.y) > ce(model, clean, batch.y)
    as_bytes = attacked_images(model, (255 * batch.x).round().to(torch.uint8), batch.y, "clean", Linf(0.1))
    assert as_bytes.dtype == torch.float64
    assert float((as_bytes - batch.x).abs().max()) <= 0.5 / 255 + 1e-12


def test_pgd_goes_on_after_an_image_is_fooled_where_a_loss_is_wanted(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model, n=12, wrong=4)
    stopped = attacked_images(model, batch.x, batch.y, "pgd-5", Linf(0.1))
    moving = attacked_images(model, batch.x, batch.y, "pgd-5", Linf(0.1), freeze_fooled=False)
    assert ce(model, moving, batch.y) > ce(model, stopped, batch.y)
    with torch.no_grad():
        standing = model(stopped).argmax(1) == batch.y
    assert torch.equal(moving[standing], stopped[standing])
    assert not torch.equal(moving[~standing], stopped[~standing])


def test_scalars_of_surfaces_that_are_known() -> None:
    axis = grid_axis(5, 2.0)
    a = torch.tensor(axis, dtype=torch.float64)
    bowl = surface(3 + a[:, None] ** 2 + 2 * a[None, :] ** 2, axis)
    assert bowl.centre == 3
    assert bowl.rise == pytest.approx(12)
    assert bowl.roughness == pytest.approx(6)  # 2 + 4
    line = surface(5 * a, axis)
    assert line.roughness == pytest.approx(0)
    assert surface(a**2, axis).roughness == pytest.approx(2)


def test_what_is_not_finite_is_infinite_and_null_in_json() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x.flatten(1))
            return self.b(h / (self.a.weight == self.kept).all())

    model = Breaks()
    model.kept = model.a.weight.detach().clone()
    found = weight_landscape(
        model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), ["a.weight"], axis=grid_axis(3, 1.0), dims=1
    )
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert found.loss.isinf().tolist() == [True, False, True]
    assert record["loss"][0] is None
    assert record["rise"] is None
    assert record["centre"] == pytest.approx(found.centre)


@pytest.mark.parametrize(
    ("points", "span", "message"),
    [(4, 1.0, "odd number of points"), (1, 1.0, "at least 3"), (5, 0.0, "span of a grid"), (5, math.inf, "span of")],
)  # fmt: skip
def test_grids_that_do_not_fit_are_refused(points: int, span: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grid_axis(points, span)


def test_other_layers_and_directions_are_refused(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model)
    with pytest.raises(InputError, match=r"no weights 9\.weight"):
        weight_landscape(model, batch.x, batch.y, ["9.weight"], axis=grid_axis(3, 1.0))
    with pytest.raises(InputError, match="1 or 2 directions, got 3"):
        weight_landscape(model, batch.x, batch.y, ["0.weight"], axis=grid_axis(3, 1.0), dims=3)
    with pytest.raises(InputError, match="labels must be integers"):
        weight_landscape(model, batch.x, batch.y + 6, ["0.weight"], axis=grid_axis(3, 1.0))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_picture(dims: int, name: str, tmp_path: Path) -> None:
    axis = grid_axis(5, 1.0)
    a = torch.tensor(axis, dtype=torch.float64)
    loss = a**2 if dims == 1 else a[:, None] ** 2 + a[None, :] ** 2
    broken = loss.clone()
    broken[(0,) * dims] = math.inf
    rows = {
        name: [Landscape("conv1", axis, one, (), {}), Landscape("whole", axis, 0 * one if k else one, (), {})]
        for k, (name, one) in enumerate({"best (step 3)": loss, "final (step 9)": broken}.items())
    }
    draw_landscapes(rows, tmp_path / name, "a run")
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    else:
        assert "<svg" in (tmp_path / name).read_text()
