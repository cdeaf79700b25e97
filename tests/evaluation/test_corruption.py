"""The arithmetic of a corruption report, and what an evaluation under corruptions refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gambeson.core.errors import DataError, InputError
from gambeson.data import corrupt
from gambeson.data.splits import Examples
from gambeson.evaluation import CorruptionReport, evaluate_corruptions, wilson
from gambeson.evaluation.corruption import bootstrap_mean


class Threshold(nn.Module):
    """Class 1 where the mean is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def grey(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 8, 8)


def report() -> CorruptionReport:
    rows = {
        ("fog", 1): [1, 1, 1, 1],
        ("fog", 3): [1, 1, 0, 0],
        ("snow", 1): [1, 0, 0, 0],
        ("snow", 3): [0, 0, 0, 0],
    }
    outcomes = {key: torch.tensor(row, dtype=torch.bool) for key, row in rows.items()}
    return CorruptionReport(outcomes, torch.tensor([True, True, True, False]), torch.tensor([0, 1, 0, 1]), {"a": 1})


def test_the_means_by_hand() -> None:
    found = report()
    assert found.corruptions == ("fog", "snow")
    assert found.severities == (1, 3)
    assert found.accuracy("fog", 3) == wilson(2, 4)
    assert found.mean("fog").value == 0.75
    assert found.mean("snow").value == 0.125
    assert found.mean().value == 0.4375 == (found.mean("fog").value + found.mean("snow").value) / 2
    assert found.mean(severity=1).value == 0.625
    assert found.mean("snow", severity=1).value == 0.25
    assert found.clean_accuracy() == wilson(3, 4)
    assert found.mean().n == 4
    with pytest.raises(InputError, match="nothing was measured of corruption 'frost'"):
        found.mean("frost")


def test_the_record() -> None:
    record = report().to_dict()
    assert record["a"] == 1
    assert record["n"] == 4
    assert record["ood"]["value"] == 0.4375
    assert record["clean"]["value"] == 0.75
    assert list(record["by_severity"]) == ["1", "3"]
    assert record["corruptions"]["fog"]["severities"]["3"] == vars(wilson(2, 4))
    assert record["corruptions"]["snow"]["mean"]["value"] == 0.125
    assert replace(report(), clean=None).to_dict()["clean"] is None


def test_the_bootstrap_resamples_images_not_outcomes() -> None:
    """Ten outcomes of each image are alike: they say no more than one."""
    right = torch.rand(400, generator=torch.Generator().manual_seed(0)) < 0.7
    once = CorruptionReport({("fog", 1): right}, None, torch.zeros(400), {})
    often = CorruptionReport(
        {(name, s): right for name in ("fog", "snow") for s in range(1, 6)}, None, torch.zeros(400), {}
    )
    assert often.mean() == once.mean()
    normal = 1.96 * (0.7 * 0.3 / 400) ** 0.5
    assert once.mean().high - once.mean().low == pytest.approx(2 * normal, rel=0.1)
    expected = wilson(int(right.sum()), 400)
    assert once.mean().low == pytest.approx(expected.low, abs=0.01)


def test_the_bootstrap_of_an_average_is_narrower() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.rand(400, generator=generator) < 0.5 for _ in range(10)]
    spread = bootstrap_mean(torch.stack(rows).double().mean(0))
    assert spread.high - spread.low == pytest.approx(2 * 1.96 * (0.25 / 4000) ** 0.5, rel=0.15)
    assert bootstrap_mean(torch.stack(rows).double().mean(0)) == spread
    with pytest.raises(InputError, match="at least one image"):
        bootstrap_mean(torch.empty(0))


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_an_evaluation_of_brightness_by_hand(batch_size: int) -> None:
    """Brightness adds .05, .1, .15, .2, .3: which grey images pass one half can be counted."""
    test = Examples(grey(50, 80, 100, 120, 130), torch.tensor([0, 0, 0, 0, 1]))
    seen: list[tuple[str, int]] = []
    model = Threshold().train()
    found = evaluate_corruptions(
        model,
        lambda name, level: replace(test, x=corrupt(test.x, name, level)),
        ("brightness", "brightness"),
        num_classes=2,
        severities=(5, 1, 2),
        clean=test,
        batch_size=batch_size,
        settings={"seed": 0},
        progress=lambda name, level: seen.append((name, level)),
    )
    assert model.training
    assert seen == [("brightness", 1), ("brightness", 2), ("brightness", 5)]
    assert found.clean is not None
    assert found.clean.tolist() == [True] * 5
    right = {level: found.outcomes["brightness", level].tolist() for level in (1, 2, 5)}
    assert right[1] == [True, True, True, False, True]  # 120 + 12.75 is above 127.5
    assert right[2] == [True, True, True, False, True]
    assert right[5] == [True, False, False, False, True]  # 76.5 more
    assert found.mean().value == pytest.approx((0.8 + 0.8 + 0.4) / 3)
    assert found.settings["seed"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"corruptions": ()}, "at least one corruption"),
        ({"severities": ()}, "at least one corruption and one severity"),
        ({"corruptions": ("fogg",)}, "unknown corruption 'fogg'"),
        ({"severities": (0,)}, "a severity must be"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"num_classes": 3}, "the model must give logits"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], words: str) -> None:
    test = Examples(grey(50, 200), torch.tensor([0, 1]))
    call: dict[str, Any] = {"corruptions": ("contrast",), "severities": (1,), "num_classes": 2, **changes}
    with pytest.raises(InputError, match=words):
        evaluate_corruptions(Threshold(), lambda *_: test, **call)


def test_labels_must_not_differ() -> None:
    def source(name: str, level: int) -> Examples:
        return Examples(grey(50, 200), torch.tensor([0, level % 2]))

    with pytest.raises(DataError, match="the labels of fog at severity 2 are not those of the others"):
        evaluate_corruptions(Threshold(), source, ("fog",), num_classes=2)
