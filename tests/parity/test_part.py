"""PART, PART-T and PART-M against transcriptions of the release: `save_cam` image by image, then its training step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD

from gambeson.core.types import Batch
from gambeson.data.loader import Loader
from gambeson.data.placement import draw_placement
from gambeson.data.splits import Examples
from gambeson.methods import Recipe, part, part_m, part_t
from gambeson.parts.budget_state import BudgetState
from parity.cases import CLASSES, EPS, STREAMS, Net, assert_equal_state, descend, gaussian, net, sgd, train, uniform
from parity.references import STEP_SIZE, mart_loss, trades_loss

pytestmark = pytest.mark.filterwarnings("ignore::gambeson.core.errors.GambesonWarning")  # Net has no closed form

LOW = 3 / 255  # below the reach of three steps
STEPS = 3
COUNT, BATCH, PAD = 14, 6, 2  # three steps an epoch, the last one smaller


class Double(Net):
    """The shared network; images may come in single precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.double())


def twins() -> tuple[Double, Double]:
    ours = Double().double().train()
    ours.load_state_dict(net(5).state_dict())
    return ours, copy.deepcopy(ours)


def data() -> Loader:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (COUNT, 3, 8, 8), generator=drawn, dtype=torch.uint8)
    y = torch.randint(0, CLASSES, (COUNT,), generator=drawn)
    return Loader(Examples(x, y), BATCH, STREAMS, pad=PAD, flip=True)


# --- the maps ------------------------------------------------------------------------------------------------------


def shown(image: Tensor, placement: list[int]) -> Tensor:
    """RandomCrop(padding) and a flip, of `(C, H, W)`."""
    top, left, mirrored = PAD + placement[0], PAD + placement[1], placement[2]
    cut = F.pad(image, (PAD,) * 4)[:, top : top + image.shape[1], left : left + image.shape[2]]
    return cut.flip(2) if mirrored else cut


def enlarged_map(model: nn.Module, layer: str, image: Tensor) -> np.ndarray[Any, Any]:
    """GradCAM of the predicted class of one image, min-max without an epsilon, enlarged by pillow."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(image[None])
    handle.remove()
    logits[0, int(logits.argmax())].backward()
    activation, grad = kept[0].detach()[0], kept[0].grad
    assert grad is not None
    cam = (grad[0].mean((1, 2))[:, None, None] * activation).nansum(0).relu()
    cam = cam - cam.min()
    cam = cam / cam.max()
    picture = Image.fromarray(cam.numpy().astype("float32"))
    return np.asarray(picture.resize((8, 8), resample=Image.Resampling.BICUBIC))


def save_cam(model: nn.Module, layer: str, images: list[Tensor]) -> list[Tensor]:
    """The release's maps of budgets `(3, H, W)`, one image after the other; gradients are wiped afterwards."""
    model.eval()
    maps = []
    for image in images:
        rgb = colormaps["jet"](enlarged_map(model, layer, image) ** 2)[:, :, :3]
        with np.errstate(invalid="ignore"):  # an empty map: black, 0/0, and no comparison holds
            weight = np.maximum((rgb - rgb.mean()) / rgb.std(), 1)
        maps.append(torch.from_numpy(np.where(weight > 1, EPS, LOW)).permute(2, 0, 1))
    model.zero_grad()
    model.train()
    return maps


def paper_maps(model: nn.Module, layer: str, images: list[Tensor]) -> list[Tensor]:
    """One map of budgets for all channels `(1, H, W)`: the z-score of the squared map above 1."""
    model.eval()
    maps = []
    for image in images:
        v = enlarged_map(model, layer, image).astype("float64") ** 2
        maps.append(torch.from_numpy(np.where((v - v.mean()) / v.std() > 1, EPS, LOW))[None])
        if np.isnan(v).any():  # an empty map
            maps[-1].fill_(EPS)
    model.zero_grad()
    model.train()
    return maps


def release_budgets(model: nn.Module, layer: str, loader: Loader, epoch: int) -> list[Tensor]:
    """Of augmented images, by place in the pass that made them."""
    images = []
    for number in range(loader.steps_per_epoch):
        chunk = loader.examples.x[number * BATCH : (number + 1) * BATCH].float() / 255
        address = STREAMS.at("augment-maps", epoch * loader.steps_per_epoch + number)
        for image, placement in zip(chunk, draw_placement(len(chunk), address, pad=PAD, flip=True), strict=True):
            images.append(shown(image, placement.tolist()))
    return save_cam(model, layer, images)


# --- stage P -------------------------------------------------------------------------------------------------------


def ascent(x: Tensor, x_adv: Tensor, budget: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Step, clamp the perturbation value by value, clip."""
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        grad = torch.autograd.grad(loss(x_adv), x_adv)[0]
        delta = x_adv.detach() + STEP_SIZE * grad.sign() - x
        x_adv = (x + torch.min(torch.max(delta, -budget), budget)).clamp(0, 1)
    return x_adv.detach()


def part_step(model: nn.Module, optimizer: SGD, batch: Batch, budget: Tensor, step: int) -> None:
    """The start has the full budget everywhere and is not clipped."""
    model.eval()
    start = batch.x + uniform(batch.x, EPS, step)
    x_adv = ascent(batch.x, start, budget, lambda x_adv: F.cross_entropy(model(x_adv), batch.y))
    model.train()
    descend(optimizer, F.cross_entropy(model(x_adv), batch.y))


def part_mma_step(model: nn.Module, optimizer: SGD, batch: Batch, budget: Tensor, step: int) -> None:
    """The release's fixed-step MMA: three targets one after the other, a hinge, the largest margin wins."""
    model.eval()
    x, y = batch.x, batch.y
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[y]
    start = (x + uniform(x, EPS, step)).clamp(0, 1)
    targets = torch.argsort(model(x).detach() - 10000 * one_hot, dim=1)
    images, margins = [], []
    for k in range(3):
        target = torch.eye(CLASSES, dtype=torch.float64)[targets[:, -1 - k]]

        def loss(x_adv: Tensor, target: Tensor = target) -> Tensor:
            z = model(x_adv)
            return -((z * one_hot).sum(1) - (z * target).sum(1) + 50).clamp_min(0).sum()

        x_adv = ascent(x, start, budget, loss)
        z = model(x_adv).detach()
        images.append(x_adv)
        margins.append((z * target).sum(1) - (z * one_hot).sum(1))
    best = torch.stack(margins).argmax(0)
    x_adv = torch.stack([images[int(k)][i] for i, k in enumerate(best)])
    model.train()
    descend(optimizer, F.cross_entropy(model(x_adv), y))


def part_t_step(model: nn.Module, optimizer: SGD, batch: Batch, budget: Tensor, step: int) -> None:
    model.eval()

    def loss(x_adv: Tensor) -> Tensor:
        return nn.KLDivLoss(reduction="sum")(F.log_softmax(model(x_adv), dim=1), F.softmax(model(batch.x), dim=1))

    x_adv = ascent(batch.x, batch.x + 0.001 * gaussian(batch.x, step), budget, loss)
    model.train()
    descend(optimizer, trades_loss(model, batch, x_adv, 6.0))


def part_m_step(model: nn.Module, optimizer: SGD, batch: Batch, budget: Tensor, step: int) -> None:
    model.eval()
    start = batch.x + 0.001 * gaussian(batch.x, step)
    x_adv = ascent(batch.x, start, budget, lambda x_adv: F.cross_entropy(model(x_adv), batch.y))
    model.train()
    logits = model(batch.x)
    descend(optimizer, mart_loss(logits, model(x_adv), batch.y, 6.0))


STAGE_P: dict[str, tuple[Callable[..., Recipe], dict[str, Any], Callable[..., None]]] = {
    "part": (part, {}, part_step),
    "part-mma": (part, {"inner_attack": "mma"}, part_mma_step),
    "part-t": (part_t, {}, part_t_step),
    "part-m": (part_m, {}, part_m_step),
}


def built(recipe: Recipe, model: nn.Module) -> tuple[nn.ModuleList, BudgetState]:
    (state,) = parts = nn.ModuleList(part.build(model) for part in recipe.parts)
    assert isinstance(state, BudgetState)
    return parts, state


@pytest.mark.parametrize("layer", ["shortcut", "conv2"])
@pytest.mark.parametrize("name", STAGE_P)
def test_the_released_training(name: str, layer: str) -> None:
    """Two epochs with new maps in each; whose map an image gets is drawn by the library and given to both sides."""
    method, options, reference = STAGE_P[name]
    recipe = method(EPS, LOW, steps=STEPS, warmup=0, layer=layer, protocol="release", **options)
    (ours, theirs), loader = twins(), data()
    optimizer, their_optimizer = sgd(ours), sgd(theirs)
    parts, state = built(recipe, ours)
    state.prepare(ours, loader, 2)
    seen = []
    for epoch in range(2):
        state.begin_epoch(ours, loader, epoch)
        budgets = release_budgets(theirs, layer, loader, epoch)
        seen.append(torch.stack(budgets))
        assert 0.05 < (seen[-1] == EPS).double().mean() < 0.6
        for step in range(epoch * 3, epoch * 3 + 3):
            batch = loader.batch(step)
            batch = batch._replace(x=batch.x.double())
            budget = torch.stack([budgets[int(state.order[i])] for i in batch.index])
            train(ours, optimizer, recipe, batch, step, epoch, parts)
            reference(theirs, their_optimizer, batch, budget, step)
            assert_equal_state(ours, optimizer, theirs, their_optimizer)
    assert not torch.equal(seen[0], seen[1])


def test_training_with_the_masks_of_the_images_themselves() -> None:
    """The paper's protocol: maps of images without augmentation, one mask for all channels, moved like the image."""
    recipe = part(EPS, LOW, steps=STEPS, warmup=0)
    (ours, theirs), loader = twins(), data()
    optimizer, their_optimizer = sgd(ours), sgd(theirs)
    parts, state = built(recipe, ours)
    state.prepare(ours, loader, 1)
    state.begin_epoch(ours, loader, 0)
    budgets = paper_maps(theirs, "shortcut", list(loader.examples.x.float() / 255))
    for step in range(3):
        batch = loader.batch(step)
        batch = batch._replace(x=batch.x.double())
        assert batch.placement is not None
        moved = []
        for i, placement in zip(batch.index, batch.placement, strict=True):
            outside = EPS if bool((budgets[i] == EPS).all()) else LOW
            moved.append(shown(budgets[i], placement.tolist()).clamp_min(outside))
        budget = torch.stack(moved)
        train(ours, optimizer, recipe, batch, step, 0, parts)

        theirs.eval()
        start = batch.x + uniform(batch.x, 1.0, step) * budget
        x_adv = ascent(
            batch.x, start.clamp(0, 1), budget, lambda x_adv, batch=batch: F.cross_entropy(theirs(x_adv), batch.y)
        )
        theirs.train()
        descend(their_optimizer, F.cross_entropy(theirs(x_adv), batch.y))
        assert_equal_state(ours, optimizer, theirs, their_optimizer)


@pytest.mark.parametrize("name", STAGE_P)
def test_another_pairing_of_maps_and_images_trains_other_weights(name: str) -> None:
    """The comparison above can fail."""
    method, options, reference = STAGE_P[name]
    recipe = method(EPS, LOW, steps=STEPS, warmup=0, protocol="release", **options)
    (ours, theirs), loader = twins(), data()
    optimizer, their_optimizer = sgd(ours), sgd(theirs)
    parts, state = built(recipe, ours)
    state.begin_epoch(ours, loader, 0)
    budgets = release_budgets(theirs, "shortcut", loader, 0)
    batch = loader.batch(0)
    batch = batch._replace(x=batch.x.double())
    train(ours, optimizer, recipe, batch, 0, 0, parts)
    reference(theirs, their_optimizer, batch, torch.stack([budgets[int(i)] for i in batch.index]), 0)
    with pytest.raises(AssertionError, match="differs by"):
        assert_equal_state(ours, optimizer, theirs, their_optimizer)
