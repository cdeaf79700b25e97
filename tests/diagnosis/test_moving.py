"""Moved weights against the formulas written out, whole networks against suffixes, and what must not change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch, Task
from gambeson.diagnosis.groups import parse_groups
from gambeson.diagnosis.moving import measure_response
from gambeson.diagnosis.probes import attacked_images
from gambeson.diagnosis.response import Response
from gambeson.models.resnets import resnet18
from gambeson.models.small_cnn import SmallCNN
from gambeson.models.vit import VisionTransformer

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
TASK = Task(num_classes=3, channels=3, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
GROUPS = {"0": ("0.weight",), "4": ("4.weight",), "both": ("0.weight", "4.weight")}


def respond(model: nn.Module, batch: Batch, **settings: object) -> Response:
    wanted = {"groups": GROUPS, "num_classes": 6, "inputs": ["clean"], "rhos": [0.05], "batch_size": 4, **settings}
    groups = wanted.pop("groups")
    return measure_response(model, batch.x, batch.y, Linf(0.05), groups, **wanted)  # type: ignore[arg-type]


def test_a_linear_model_against_numpy() -> None:
    """`p - e` times the image is the gradient of softmax regression; everything else follows by hand."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(size=(9, 8)), rng.normal(size=(4, 8))
    y = (x @ w.T).argmax(1)
    y[:2] = (y[:2] + 1) % 4
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4, bias=False)).double()
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(w))

    def losses(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        z = x @ weight.T
        return np.log(np.exp(z - z[np.arange(9), y][:, None]).sum(1)), z

    z = losses(w)[1]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(9), y] -= 1
    g = p.T @ x / 9
    images, labels = torch.from_numpy(x).view(9, 2, 2, 2), torch.from_numpy(y)
    found = measure_response(
        model, images, labels, Linf(0.05), {"1": ["1.weight"]}, num_classes=4, inputs=["clean"],
        kinds=["adversarial"], rhos=[0.01, 0.3], batch_size=4,
    )  # fmt: skip
    assert found.whole["clean"].loss.numpy() == pytest.approx(losses(w)[0])
    for rho in (0.01, 0.3):
        wanted, moved = losses(w + rho * np.linalg.norm(w) * g / np.linalg.norm(g))
        one = found.of("1", "clean", rho)
        assert one.loss.numpy() == pytest.approx(wanted)
        assert one.correct.tolist() == (moved.argmax(1) == y).tolist()
        assert found.rise(one).value == pytest.approx(wanted.mean() - losses(w)[0].mean())
        assert found.rise(one).value > 0


def test_a_group_moves_all_its_layers_each_by_its_own_norm(curved_net: Net, labelled: Labelled) -> None:
    """The oracle: a copy of the model into which the moved weights are written."""
    model = curved_net()
    batch = labelled(model, n=10, wrong=2)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ticks: list[int] = []
    found = respond(model, batch, inputs=["clean", "pgd-3"], rhos=[0.02, 0.1], seed=7, progress=lambda: ticks.append(1))
    assert len(ticks) == len(found.moves) == 3 * 2 * 2 * 2
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    threat = Linf(0.05)
    for inputs in ("clean", "pgd-3"):
        images = attacked_images(model, batch.x, batch.y, inputs, threat, freeze_fooled=False, batch_size=4, seed=7)
        nn.functional.cross_entropy(model(images), batch.y).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        for one in found.moves:
            if one.inputs != inputs:
                continue
            moved = copy.deepcopy(model)
            with torch.no_grad():
                for name in GROUPS[one.group]:
                    w = moved.get_parameter(name)
                    if one.kind == "adversarial":
                        w += one.rho * before[name].norm() * grads[name] / grads[name].norm()
                        continue
                    d = torch.randn(w.shape, generator=Streams(7).at(f"landscape/{name}", 0)).double()
                    for f in range(len(w)):
                        w[f] += one.rho * before[name][f].norm() * d[f] / d[f].norm()
                    distance = (w - before[name]).norm() / before[name].norm()
                    assert float(distance) == pytest.approx(one.rho)
                logits = moved(images)
            assert torch.allclose(one.loss, nn.functional.cross_entropy(logits, batch.y, reduction="none"), atol=1e-12)
            assert torch.equal(one.correct, logits.argmax(1) == batch.y)


def test_a_small_step_up_raises_the_loss_by_the_slope(curved_net: Net, labelled: Labelled) -> None:
    """The slope along `g / |g|` is `|g|`: the rise is `rho |w| |g|` to first order, and no direction has more."""
    model = curved_net()
    batch = labelled(model, wrong=3)
    found = respond(model, batch, rhos=[1e-5])
    nn.functional.cross_entropy(model(batch.x), batch.y).backward()
    for group, names in GROUPS.items():
        slopes = [
            float((w.norm() * w.grad.norm()).detach()) for w in map(model.get_parameter, names) if w.grad is not None
        ]
        rise = found.rise(found.of(group, "clean", 1e-5)).value
        assert rise == pytest.approx(1e-5 * sum(slopes), rel=1e-3)
        assert abs(found.rise(found.of(group, "clean", 1e-5, "random")).value) < rise


@pytest.mark.parametrize("strategy", ["cached", "naive"])
def test_a_perturbation_of_size_zero_does_nothing(strategy: str, curved_net: Net, labelled: Labelled) -> None:
    model = curved_net().float()
    batch = labelled(curved_net(), wrong=2)
    batch = Batch(batch.x.float(), batch.y, batch.index)
    found = respond(model, batch, inputs=["clean", "fgsm"], rhos=[0.0], strategy=strategy)
    assert len(found.moves) == 12
    for one in found.moves:
        assert torch.equal(one.loss, found.whole[one.inputs].loss)
        assert torch.equal(one.correct, found.whole[one.inputs].correct)


def test_the_scale_of_a_layer_that_is_normalised_does_not_matter(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    model[1].eps = 0.0
    batch = labelled(model, wrong=3)
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger[0].weight *= 3
        larger[1].running_mean *= 3
        larger[1].running_var *= 9
    one, other = (respond(net, batch, inputs=["clean", "fgsm"], rhos=[0.01, 0.1]) for net in (model, larger))
    for a, b in zip(one.moves, other.moves, strict=True):
        assert torch.allclose(a.loss, b.loss, rtol=1e-9, atol=1e-12)
    assert float((one.moves[0].loss - one.whole["clean"].loss).abs().max()) > 1e-3


class Branching(nn.Module):
    """Cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 8), nn.Linear(8, 8)
        self.third, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.last(self.third(self.second(x.relu() if x.sum() > 0 else x.sigmoid())))


@pytest.mark.parametrize("memory", [2**30, 6000, 0])
@pytest.mark.parametrize(
    "build",
    [
        lambda: resnet18(TASK, width=4),
        lambda: VisionTransformer(TASK, patch=4, dim=16, depth=1, heads=2),
        lambda: SmallCNN(TASK).to(memory_format=torch.channels_last),
        Branching,
    ],
    ids=["resnet18", "vit", "small-cnn, channels-last", "untraced"],
)
def test_the_suffix_gives_the_bits_of_the_whole_network(build: Callable[[], nn.Module], memory: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model, x, y = build().eval(), torch.rand(7, 3, 8, 8), torch.arange(7) % 3
    groups = parse_groups(model, "latter,layers,former,whole")
    settings = {"num_classes": 3, "inputs": ["clean", "fgsm"], "rhos": [0.1], "batch_size": 4}
    cached, naive = (
        measure_response(model, x, y, Linf(0.05), groups, strategy=strategy, memory=memory, **settings)  # type: ignore[arg-type]
        for strategy in ("cached", "naive")
    )
    assert (cached.untraced is None) == (not isinstance(model, Branching))
    assert [one.group for one in cached.moves] == [one.group for one in naive.moves]
    changed = 0
    for a, b in zip(cached.moves, naive.moves, strict=True):
        assert torch.equal(a.loss, b.loss), a.group
        assert torch.equal(a.correct, b.correct)
        changed += not torch.equal(a.loss, cached.whole[a.inputs].loss)
    assert changed == len(cached.moves)


def test_remade_images_are_those_of_attacks_on_the_moved_model(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model, n=6, wrong=1)
    settings: dict[str, object] = {"inputs": ["clean", "fgsm", "pgd-3"], "groups": {"0": ("0.weight",)}, "seed": 3}
    kept = respond(model, batch, **settings)
    remade = respond(model, batch, **settings, remake=True)
    for a, b in zip(kept.moves, remade.moves, strict=True):
        assert torch.equal(kept.whole[a.inputs].loss, remade.whole[a.inputs].loss)
        if a.inputs == "clean":
            assert torch.equal(a.loss, b.loss)
            continue
        images = attacked_images(
            model, batch.x, batch.y, a.inputs, Linf(0.05), freeze_fooled=False, batch_size=4, seed=3
        )
        moved = copy.deepcopy(model)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(model(images), batch.y), model[0].weight)
        with torch.no_grad():
            w = moved[0].weight
            d = torch.randn(w.shape, generator=Streams(3).at("landscape/0.weight", 0)).double()
            d *= (w.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
            w += 0.05 * (w.norm() * grad / grad.norm() if a.kind == "adversarial" else d)
        again = attacked_images(
            moved, batch.x, batch.y, a.inputs, Linf(0.05), freeze_fooled=False, batch_size=4, seed=3
        )
        wanted = nn.functional.cross_entropy(moved(again), batch.y, reduction="none")
        assert torch.allclose(b.loss, wanted, atol=1e-9)
        assert not torch.allclose(a.loss, b.loss, atol=1e-9)


class Spare(nn.Module):
    """A layer that the forward does not use, and logits that are not finite for images whose first pixel is 0."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.spare = net, nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + torch.where(x[:, 0, 0, :1] == 0, torch.nan, 0)


def test_a_weight_that_nothing_depends_on_is_not_moved(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    found = respond(Spare(net), labelled(net), groups={"spare": ("spare.weight",)})
    assert len(found.moves) == 2
    assert all(torch.equal(one.loss, found.whole["clean"].loss) for one in found.moves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"a": ["9.weight"]}}, r"no weights 9\.weight"),
        ({"groups": {}}, "needs groups of layers, images, ways and sizes"),
        ({"groups": {"a": []}}, "needs groups of layers"),
        ({"inputs": []}, "needs groups of layers"),
        ({"kinds": []}, "needs groups of layers"),
        ({"rhos": []}, "needs groups of layers"),
        ({"rhos": [-0.1]}, r"at least 0, got \[-0.1\]"),
        ({"rhos": [math.inf]}, "at least 0"),
        ({"kinds": ["adverse"]}, "unknown kind 'adverse'"),
        ({"strategy": "wavefront"}, "unknown strategy 'wavefront'"),
        ({"inputs": ["pdg-3"]}, "unknown attack 'pdg-3'"),
        ({"num_classes": 5}, "logits of shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    changes: dict[str, object], message: str, curved_net: Net, labelled: Labelled
) -> None:
    model = curved_net()
    batch = labelled(model, n=6)
    batch = Batch(batch.x, batch.y.clamp_max(4), batch.index)
    with pytest.raises(InputError, match=message):
        respond(model, batch, **changes)


def test_a_loss_that_is_not_finite_to_begin_with_is_refused(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    batch = labelled(net, n=100)
    batch.x[1, 0, 0, 0] = 0  # the examination before looks at some images only
    with pytest.raises(InputError, match="the loss on clean images is not finite with the model's own weights"):
        respond(Spare(net), batch, groups={"a": ("net.0.weight",)})
