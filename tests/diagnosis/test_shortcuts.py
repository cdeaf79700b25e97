"""Removal of weights against an independent ranking, the verdict on known outcomes, and a model with a shortcut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gambeson.core.errors import InputError
from gambeson.core.threat import Linf
from gambeson.core.types import Batch
from gambeson.diagnosis.shortcuts import Removal, Shortcuts, find_shortcuts, removed
from gambeson.diagnosis.shortcuts_picture import draw_shortcuts
from gambeson.evaluation import evaluate

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]


def weights(seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng) for name, shape in {"a": (4, 5), "b": (3, 2, 3, 3)}.items()}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("mode", ["largest", "smallest"])
def test_every_layer_loses_its_share_by_magnitude(share: float, mode: str) -> None:
    own = weights()
    found = removed(own, share, mode)  # type: ignore[arg-type]
    for name, w in own.items():
        after = (w + found[name]).flatten()
        count = round(share * w.numel())
        order = sorted(range(w.numel()), key=lambda i: float(w.flatten()[i].abs()), reverse=mode == "largest")
        assert sorted((after == 0).nonzero().squeeze(1).tolist()) == sorted(order[:count])
        kept = order[count:]
        assert torch.equal(after[kept], w.flatten()[kept])


def test_pooled_layers_are_ranked_together() -> None:
    own = weights()
    own["a"] *= 100
    found = removed(own, 0.2, "largest", pooled=True)
    total = sum(w.numel() for w in own.values())
    assert int((found["a"] != 0).sum()) == round(0.2 * total)
    assert not found["b"].any()


def test_random_weights_are_nested_and_belong_to_the_layer() -> None:
    own = weights()
    few, many = (removed(own, share, "random", seed=3)["b"] != 0 for share in (0.1, 0.5))
    alone = removed({"b": own["b"]}, 0.1, "random", seed=3)["b"] != 0
    assert bool((many | ~few).all())
    assert torch.equal(alone, few)
    assert not torch.equal(removed(own, 0.1, "random", seed=4)["b"] != 0, few)


def test_what_cannot_be_removed_is_refused() -> None:
    with pytest.raises(InputError, match=r"lies in \[0, 1\], got 1.5"):
        removed(weights(), 1.5, "largest")
    with pytest.raises(InputError, match="unknown mode 'biggest'"):
        removed(weights(), 0.5, "biggest")  # type: ignore[arg-type]


def outcome(n: int, *correct: int) -> Tensor:
    found = torch.zeros(n, dtype=torch.bool)
    found[list(correct)] = True
    return found


def shortcuts(fgsm: Tensor, pgd: Tensor) -> Shortcuts:
    n = len(fgsm)
    whole = Removal("none", "largest", 0.0, {"fgsm": outcome(n, *range(30)), "pgd": outcome(n, 0)})
    one = Removal("former", "largest", 0.1, {"fgsm": fgsm, "pgd": pgd})
    settings = {"groups": {"former": ["a"]}, "modes": ["largest"], "shares": [0.1]}
    return Shortcuts(whole, (one,), "fgsm", "pgd", settings)


def test_a_shortcut_is_a_fall_under_one_step_and_a_rise_under_many() -> None:
    n = 60
    seen = shortcuts(outcome(n, *range(10)), outcome(n, *range(12)))
    assert seen.found == seen.removals
    assert "without 10 % of the largest of former" in seen.sentence()
    assert "-33.3 points" in seen.sentence()
    assert "+18.3" in seen.sentence()
    for other in (
        shortcuts(outcome(n, *range(10)), outcome(n, 0, 1)),  # a rise within the noise
        shortcuts(outcome(n, *range(29)), outcome(n, *range(12))),  # a fall within the noise
        shortcuts(outcome(n, *range(50)), outcome(n, *range(12))),  # no fall
    ):
        assert not other.found
        assert other.sentence().startswith("no sign of a shortcut")


def test_a_removal_is_measured_as_the_model_without_the_weights(curved_net: Net, labelled: Labelled) -> None:
    model = curved_net()
    batch = labelled(model, n=20)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ticks: list[int] = []
    found = find_shortcuts(
        model, batch.x, batch.y, Linf(0.05), {"first": ["0.weight"]}, num_classes=6, modes=["largest", "random"],
        shares=[0.5, 0.2], attacks=("fgsm", "pgd-5"), batch_size=8, seed=4, progress=lambda: ticks.append(1),
    )  # fmt: skip
    assert len(ticks) == 5
    assert [(one.mode, one.share) for one in found.removals] == [
        ("largest", 0.2), ("largest", 0.5), ("random", 0.2), ("random", 0.5),
    ]  # fmt: skip
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with torch.no_grad():
        model[0].weight += removed({"0.weight": before["0.weight"]}, 0.5, "largest")["0.weight"]
    report = evaluate(model, batch.x, batch.y, ["fgsm", "pgd-5"], Linf(0.05), num_classes=6, batch_size=8, seed=4)
    for name, correct in report.outcomes.items():
        assert torch.equal(found.removals[1].outcomes[name], correct)
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert record["removals"][1]["accuracy"]["fgsm"]["value"] == pytest.approx(report.accuracy("fgsm").value)
    assert [one.share for one in found.curve("first", "largest")] == [0.0, 0.2, 0.5]


def test_a_model_with_a_shortcut_is_seen_through() -> None:
    """One large weight reads a pixel from which one full step along the gradient helps, and a shorter one hurts."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Linear(2, 2, bias=False) for _ in range(2))
            with torch.no_grad():
                self.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 8.0]]))
                self.second.weight.copy_(torch.eye(2))

        def forward(self, x: Tensor) -> Tensor:
            signal, hidden = self.first(x[:, 0, 0] - 0.5).unbind(1)
            answer = 0.5 * torch.sin(2 * torch.pi * hidden / 8 / 0.15)
            score = self.second(torch.stack([signal, answer], 1)).sum(1)
            return torch.stack([-score, score], 1)

    y = torch.arange(80) % 2
    x = torch.full((80, 1, 1, 2), 0.5)
    size = torch.where(torch.arange(80) < 40, 0.3, 0.05)  # half of the images are robust without the answer
    x[:, 0, 0, 0] += size * (2 * y - 1)
    groups = {"first": ["first.weight"]}
    found = find_shortcuts(
        Shortcut(), x, y, Linf(0.1), groups, num_classes=2, modes=["largest", "smallest"], shares=[0.25]
    )
    large, small = found.removals
    assert [found.whole.accuracy(name).value for name in ("clean", "fgsm", "pgd-10")] == [1, 1, 0]
    assert [large.accuracy(name).value for name in ("clean", "fgsm", "pgd-10")] == [1, 0.5, 0.5]
    assert found.found == (large,)
    assert [small.accuracy(name).value for name in ("clean", "fgsm", "pgd-10")] == [1, 1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": {"a": ["9.weight"]}}, r"no weights 9\.weight"),
        ({"groups": {}}, "needs groups of layers, modes and shares"),
        ({"modes": []}, "needs groups of layers, modes and shares"),
        ({"shares": []}, "needs groups of layers, modes and shares"),
        ({"shares": [0.0]}, r"lie in \(0, 1\]"),
        ({"num_classes": 5}, "logits of shape"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    changes: dict[str, object], message: str, curved_net: Net, labelled: Labelled
) -> None:
    model = curved_net()
    batch = labelled(model, n=6)
    settings: dict[str, object] = {"groups": {"first": ["0.weight"]}, "num_classes": 6, **changes}
    groups = settings.pop("groups")
    with pytest.raises(InputError, match=message):
        find_shortcuts(model, batch.x, batch.y.clamp_max(4), Linf(0.1), groups, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_the_picture(name: str, tmp_path: Path) -> None:
    draw_shortcuts(shortcuts(outcome(60, *range(10)), outcome(60, *range(12))), tmp_path / name, "a run")
    if name.endswith("png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    else:
        assert "<svg" in (tmp_path / name).read_text()
