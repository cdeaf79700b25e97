"""All layers at once against one layer after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.types import Task
from gambeson.diagnosis.criticality import measure_criticality
from gambeson.diagnosis.mrc import MRC, PROTOCOLS
from gambeson.models.resnets import resnet18
from gambeson.models.vit import VisionTransformer

TASK = Task(num_classes=3, channels=3, size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
QUICK = MRC(epochs=3, batch_size=4)
PAPER = dataclasses.replace(PROTOCOLS["paper"], batch_size=4, epochs=4)


class Branches(nn.Module):
    """Two branches that meet, so that a layer's stream is joined by the plain values of the other branch."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.right = nn.Linear(4, 3), nn.Conv2d(3, 4, 1)
        self.left = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.left(x) + self.right(x)).relu().mean((2, 3)))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x)).relu()).mean((2, 3)))


class Mixing(nn.Module):
    """Every image's logits depend on the number of images: streams cannot share a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1))
        return self.second(x.reshape(x.shape[0], -1) / x.shape[0])


class Transposed(nn.Module):
    """The images are the second dimension on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(24, 6), nn.Linear(6, 5), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.flatten(1).unflatten(1, (8, 24)).transpose(0, 1)).relu()
        return self.third(self.second(x).transpose(0, 1).flatten(1))


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return build(), torch.rand(10, 3, 8, 8), torch.randint(0, 3, (10,))


def found(
    protocol: MRC, build: Callable[[], nn.Module], strategy: Any, **settings: Any
) -> dict[str, tuple[float, ...]]:
    rows = measure_criticality(*made(build), protocol, strategy=strategy, **settings).layers
    return {row.layer: (row.mrc, row.accuracy, row.distance, row.epochs) for row in rows}


@pytest.mark.parametrize("protocol", [QUICK, PAPER, dataclasses.replace(PAPER, lr=0.01, update="sgd")])
@pytest.mark.parametrize(
    "build", [Branches, Transposed, lambda: VisionTransformer(TASK, patch=4, dim=8, depth=1, heads=2)]
)
def test_all_at_once_is_one_after_the_other(protocol: MRC, build: Callable[[], nn.Module]) -> None:
    together, alone = found(protocol, build, "wavefront"), found(protocol, build, "naive")
    assert list(together) == list(alone)
    for layer, values in alone.items():
        assert together[layer] == pytest.approx(values, rel=1e-5, abs=1e-5), layer
    assert max(mrc for mrc, *_ in alone.values()) > 1e-3


def test_layers_that_stop_leave_the_wave() -> None:
    """With steps of this size some layers leave the ball in the first epoch, some later, some never."""
    protocol = dataclasses.replace(PAPER, lr=0.05)
    epochs: list[str] = []
    together = found(protocol, Branches, "wavefront", progress=epochs.append)
    assert len({row[3] for row in together.values()}) > 1
    assert {layer: epochs.count(layer) for layer in together} == {layer: row[3] for layer, row in together.items()}


def test_a_part_of_the_layers_is_searched_alike() -> None:
    some = found(QUICK, Branches, "wavefront", layers=["left.2", "head"])
    whole = found(QUICK, Branches, "wavefront")
    assert list(some) == ["head", "left.2"]
    for layer, values in some.items():
        assert values == pytest.approx(whole[layer], abs=1e-5)


def test_the_trunk_runs_once_for_all_layers() -> None:
    model, x, y = made(lambda: resnet18(TASK, width=4))
    calls = {"together": 0, "alone": 0}
    protocol = MRC(epochs=1, batch_size=5)
    layers = ["layer3.1.conv1", "layer4.1.conv1", "linear"]
    for key, strategy in (("together", "wavefront"), ("alone", "naive")):

        def count(_module: nn.Module, _inputs: Any, key: str = key) -> None:
            calls[key] += 1

        handle = model.conv1.register_forward_pre_hook(count)
        measure_criticality(model, x, y, protocol, layers=layers, strategy=strategy)  # type: ignore[arg-type]
        handle.remove()
    shared = 1 + 1 + 2  # which layers are used, the number of classes, the loss of the model itself
    assert (
        calls["together"] <= shared + 3 + 1 + 1 + 2
    )  # tracing and its check, the first gradients, one step, the evaluation
    assert calls["alone"] == shared + 3 * (2 + 2)


@pytest.mark.parametrize(
    ("build", "said"),
    [(Twice, "uses shared more than once"), (Mixing, "from the size of the batch, so layers cannot share one")],
)
def test_what_cannot_share_a_batch_is_refused(build: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        found(QUICK, build, "wavefront")
    assert error.value.hint == "use the cached strategy"
    assert found(QUICK, build, "cached", shuffle=False) == found(QUICK, build, "naive", shuffle=False)
