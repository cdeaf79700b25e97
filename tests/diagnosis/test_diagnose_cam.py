"""Shares at the full budget against values worked out by hand and against the budgets of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.streams import Streams
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.diagnosis import CamDiagnosis, diagnose_cam, draw_cam
from gambeson.diagnosis.cam import rule_name
from gambeson.diagnosis.cam_picture import CELL, LEFT, TITLE, outline
from gambeson.parts.budgets import PixelBudget
from gambeson.parts.cam import CAM
from gambeson.parts.masks import Jet, Quantile, Rule, ZScore, create_mask

NAMES = ("spot", "plain")


def mean_net(channels: int = 1) -> nn.Sequential:
    """The image's mean m gives the logits (m, -m): always class 0, and its map is the mean of the channels."""
    net = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    with torch.no_grad():
        net[0].weight.fill_(1 / channels)  # type: ignore[union-attr, operator]
        net[3].weight.copy_(torch.tensor([[1.0], [-1.0]]))  # type: ignore[union-attr, operator]
        net[3].bias.zero_()  # type: ignore[union-attr, operator]
    return net


def spots() -> tuple[Tensor, Tensor]:
    """One bright pixel of 16; two of 16; nothing. Labels: right, wrong, wrong."""
    x = torch.zeros(3, 1, 4, 4)
    x[0, 0, 1, 2] = 0.5
    x[1, 0, 0, 0] = x[1, 0, 3, 3] = 1.0
    return x, torch.tensor([0, 1, 1])


def diagnose(**changes: Any) -> CamDiagnosis:
    x, y = spots()
    return diagnose_cam(mean_net(), x, y, class_names=NAMES, **changes)


def test_shares_by_hand() -> None:
    """One pixel of 16: mean 1/16, deviation 0.242, so that only 1 > 0.304; two likewise; the empty map keeps all."""
    found = diagnose()

    assert found.site.layer == "0"
    assert found.site.head is not None
    assert found.full.tolist() == [[1 / 16], [2 / 16], [1.0]]
    assert found.any_channel.tolist() == [1 / 16, 2 / 16, 1.0]
    assert found.dead.tolist() == [False, False, True]
    assert found.predicted.tolist() == [0, 0, 0]


def test_an_empty_map_has_the_budget_that_is_asked_for() -> None:
    assert diagnose(dead="low").full.flatten().tolist() == [1 / 16, 2 / 16, 0.0]
    with pytest.raises(InputError, match="budget of dead maps"):
        diagnose(dead="half")


def test_groups_by_hand() -> None:
    groups = diagnose().groups()
    right, wrong, everything = groups["correct"], groups["wrong"], groups["all"]
    assert right
    assert wrong
    assert everything

    assert (right.full.n, right.full.mean, right.full.std, right.dead) == (1, 1 / 16, None, 0)
    assert (wrong.full.n, wrong.full.mean, wrong.full.min, wrong.full.max) == (2, 9 / 16, 2 / 16, 1.0)
    assert wrong.full.std == pytest.approx((14 / 16) / 2**0.5)
    assert (wrong.dead, everything.dead, everything.full.n) == (1, 1, 3)
    assert everything.full.mean == pytest.approx(19 / 48)


def test_a_group_without_images_is_none() -> None:
    x, _ = spots()
    groups = diagnose_cam(mean_net(), x, torch.zeros(3, dtype=torch.int64), class_names=NAMES).groups()

    assert groups["wrong"] is None
    assert groups["correct"] == groups["all"]


def test_the_mean_budget_by_hand() -> None:
    assert diagnose().mean_budget(0.48, 0.0) == pytest.approx(0.48 * 19 / 48)
    assert diagnose().mean_budget(0.3, 0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("rule", [ZScore(), ZScore(0.2), Quantile(0.7), Jet()])
@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_the_masks_are_those_of_a_training(rule: Rule, method: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(6, 3, 8, 8, generator=draw), torch.arange(6) % 2
    x[4] = 0.5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv, linear = nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Linear(5, 2)
    model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    cam = CAM(method, "1")
    found = diagnose_cam(model, x, y, class_names=NAMES, rule=rule, cam=cam, shown=6, batch_size=4)
    state = PixelBudget(eps_low=0.1, mask=rule, cam=cam, refresh=0).build(model)
    masks, dead = state.mask(model, Batch(x, y, torch.arange(6)), lambda name: Streams(0).at(name))
    budget = state.budget(model, Batch(x, y, torch.arange(6)), Linf(0.2), lambda name: Streams(0).at(name), 0)

    assert torch.equal(found.shown.masks, masks)
    assert torch.equal(found.dead, dead)
    assert torch.allclose(found.full, masks.float().mean((2, 3)))
    assert found.mean_budget(0.2, 0.1) == pytest.approx(float(torch.as_tensor(budget.eps).mean()), rel=1e-5)
    assert 0 < float(found.full.mean()) < 1


def test_jet_counts_channels_and_pixels_apart() -> None:
    """A ramp from 0 to 1: jet marks red, green and blue on bands of it, and none at the top."""
    x = torch.linspace(0, 1, 64).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    found = diagnose_cam(mean_net(3), x, torch.tensor([0]), class_names=NAMES, rule=Jet())
    mask = found.shown.masks[0]

    assert found.full.shape == (1, 3)
    assert found.full[0].tolist() == mask.float().mean((1, 2)).tolist()
    assert float(found.any_channel) == float(mask.any(0).float().mean()) > float(found.full.mean())
    assert not mask[:, 7, 7].any()
    assert mask.flatten(1).any(1).all()
    with pytest.raises(InputError, match="the jet mask has three channels, the images have 1"):
        diagnose(rule=Jet())


def test_bytes_are_images_and_batches_change_nothing() -> None:
    x, y = spots()
    exact = (x * 2 * 51).to(torch.uint8)  # 51 and 102 of 255
    one = diagnose_cam(mean_net(), exact, y, class_names=NAMES, batch_size=1)
    all_at_once = diagnose_cam(mean_net(), exact.float() / 255, y, class_names=NAMES)

    assert torch.equal(one.full, all_at_once.full)
    for field in ("index", "x", "maps", "masks"):
        assert torch.equal(getattr(one.shown, field), getattr(all_at_once.shown, field)), field


@pytest.mark.parametrize(("shown", "index"), [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (99, list(range(10)))])
def test_the_images_shown_lie_evenly_over_all(shown: int, index: list[int]) -> None:
    x = torch.linspace(0, 0.9, 10).view(10, 1, 1, 1).expand(10, 1, 4, 4)
    y = torch.zeros(10, dtype=torch.int64)
    found = diagnose_cam(mean_net(), x, y, class_names=NAMES, shown=shown, batch_size=3)

    assert found.shown.index.tolist() == index
    assert found.shown.x[:, 0, 0, 0].tolist() == pytest.approx([i / 10 for i in index])


def test_the_model_comes_back_as_it_was() -> None:
    model = nn.Sequential(mean_net()[0], nn.BatchNorm2d(1), *mean_net()[1:]).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x, y = spots()
    diagnose_cam(model, x, y, class_names=NAMES)

    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_what_was_done_is_counted_and_in_the_record() -> None:
    seen: list[int] = []
    found = diagnose(progress=seen.append, batch_size=2, cam=CAM("layercam"), rule=Quantile(0.9), shown=2)
    record = json.loads(json.dumps(found.to_dict()))

    assert seen == [2, 1]
    assert {key: record[key] for key in ("n", "layer", "closed_form", "cam", "mask", "dead_budget")} == {
        "n": 3,
        "layer": "0",
        "closed_form": True,
        "cam": "layercam",
        "mask": "quantile:0.9",
        "dead_budget": "full",
    }
    assert record["shown"] == {"index": [0, 2], "y": [0, 1], "predicted": [0, 0], "full": [1 / 16, 1.0]}
    assert record["groups"]["all"]["channels"] == [record["groups"]["all"]["full"]["mean"]]


@pytest.mark.parametrize("name", ["zscore:0.5", "zscore:1", "quantile:0.25", "jet"])
def test_the_name_of_a_rule_makes_the_rule(name: str) -> None:
    rule = create_mask(name)
    assert isinstance(rule, (ZScore, Quantile, Jet))
    assert rule_name(rule) == name


# the picture


def circumference(mask: np.ndarray[Any, Any]) -> int:
    """Sides of true pixels that no other true pixel shares, one by one."""
    height, width = mask.shape
    sides = 0
    for y, x in np.ndindex(height, width):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= v < height and 0 <= u < width and mask[v, u]
            sides += bool(mask[y, x]) and not inside
    return sides


def test_an_outline_by_hand() -> None:
    mask = np.zeros((3, 4), dtype=bool)
    mask[1, 2] = True

    assert sorted(outline(mask)) == [[(2, 1), (2, 2)], [(2, 1), (3, 1)], [(2, 2), (3, 2)], [(3, 1), (3, 2)]]
    assert outline(np.zeros((3, 3), dtype=bool)) == []


def test_an_outline_has_the_circumference() -> None:
    mask = np.random.default_rng(0).random((7, 5)) < 0.5
    assert len(outline(mask)) == circumference(mask) > 20


def said(picture: Path) -> list[str]:
    ElementTree.parse(picture)
    return [line.strip(" <>!-") for line in picture.read_text().splitlines() if line.strip().startswith("<!--")]


def test_the_picture_names_classes_and_empty_maps(tmp_path: Path) -> None:
    x, y = spots()
    names = ("$\\spot$", "a name that is far too long for its column")
    found = diagnose_cam(mean_net(), x, y, class_names=names)
    draw_cam(found, tmp_path / "a.svg", "run & $\\co$")
    words = said(tmp_path / "a.svg")

    assert words.count("$\\spot$") == 4  # true once, predicted three times
    assert words.count("a name that is…") == 2
    assert words.count("empty map") == 1
    assert any("run &" in word and "Grad-CAM of 0, mask zscore:1" in word for word in words)
    assert "39.6% of all values at the full budget (n = 3)" in words


@pytest.mark.parametrize(("rule", "rows"), [(ZScore(), 3), (Jet(), 4)])
@pytest.mark.parametrize("count", [1, 9])
def test_the_picture_has_a_column_per_image_and_a_row_per_panel(
    rule: Rule, rows: int, count: int, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, 8, 8, generator=draw)
    y = torch.zeros(count, dtype=torch.int64)
    draw_cam(diagnose_cam(mean_net(3), x, y, class_names=NAMES, rule=rule, shown=count), tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    bars = 1 if count <= 8 else 2
    draw_cam(diagnose_cam(mean_net(3), x, y, class_names=NAMES, rule=rule, shown=count), tmp_path / "a.png")

    assert drawn.count("<image ") == count * rows + bars
    with Image.open(tmp_path / "a.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**7)) > 50  # type: ignore[arg-type]


def test_pixels_stay_sharp(tmp_path: Path) -> None:
    """A chequerboard of two greys: between them nothing is blended."""
    x = (torch.arange(64).view(8, 8) % 2 + torch.arange(8)[:, None]) % 2 * 0.5 + 0.25
    x = x.view(1, 1, 8, 8)
    draw_cam(diagnose_cam(mean_net(), x, torch.tensor([0]), class_names=NAMES), tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    left, top, side = (int(200 * inches) for inches in (LEFT, 0.62 + TITLE, CELL))  # 0.62: a heading of two lines
    panel = pixels[top + 3 : top + side - 3, left + 3 : left + side - 3].reshape(-1, 3)
    shades, counts = np.unique(panel, axis=0, return_counts=True)
    found = sorted(zip(counts.tolist(), shades[:, 0].tolist(), strict=True))[-2:]

    assert sum(count for count, _ in found) == len(panel)
    assert sorted(shade for _, shade in found) == pytest.approx([64, 191], abs=1)
