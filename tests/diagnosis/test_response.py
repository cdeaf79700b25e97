"""Which layers respond most, on numbers that are known; the record, the sentence and the picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

from gambeson.diagnosis.response import Kind, Moved, Response
from gambeson.diagnosis.response_picture import draw_responses
from gambeson.evaluation import paired_difference

N = 40
NOISE = torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE -= NOISE.mean()
GROUPS = {
    "a": ("a.weight",),
    "b": ("b.weight",),
    "c": ("c.weight",),
    "former": ("a.weight",),
    "latter": ("b.weight", "c.weight"),
    "whole": ("a.weight", "b.weight", "c.weight"),
}


def response(
    rises: Mapping[str, float],
    *,
    groups: Mapping[str, tuple[str, ...]] = GROUPS,
    spread: float = 0.1,
    kinds: tuple[Kind, ...] = ("adversarial", "random"),
    rhos: tuple[float, ...] = (0.01, 0.05),
    correct: Tensor | None = None,
) -> Response:
    """Losses that rise by `rho / 0.05 * rise` up the gradient and not at random, with noise by group."""
    right = torch.arange(N) < 30
    whole = {name: Moved("none", kinds[0], 0.0, name, NOISE.abs() + 1, right) for name in ("clean", "fgsm")}
    moves = []
    for inputs in whole:
        for number, group in enumerate(groups):
            for kind in kinds:
                for rho in rhos:
                    rise = rises[group] * rho / 0.05 * (kind == "adversarial") * (2 if inputs == "fgsm" else 1)
                    loss = whole[inputs].loss + rise + spread * NOISE.roll(number)
                    moves.append(Moved(group, kind, rho, inputs, loss, right if correct is None else correct))
    settings = {"inputs": list(whole), "kinds": list(kinds), "rhos": list(rhos), "remake": False}
    return Response(groups, whole, tuple(moves), settings)


RISES = {"a": 0.5, "b": 0.2, "c": 0.3, "former": 0.5, "latter": 0.8, "whole": 1.5}


def test_layers_are_compared_one_at_a_time_where_they_were_measured() -> None:
    """Together the two latter layers raise the loss more than the one former layer; one at a time they do not."""
    found = response(RISES)
    assert found.layers == ("a", "b", "c")
    assert found.parts == ("former", "latter")
    most = found.most("clean")
    assert (most.by, most.first, most.second, most.told_apart) == ("alone", "former", "latter", True)
    assert {name: rise.value for name, rise in most.alone.items()} == pytest.approx({"former": 0.5, "latter": 0.25})
    assert {name: rise.value for name, rise in most.together.items()} == pytest.approx({"former": 0.5, "latter": 0.8})
    assert most.margin is not None
    assert most.margin.value == pytest.approx(0.25)
    assert most.layer is not None
    assert most.layer[0] == "a"
    assert found.most("fgsm").alone["former"].value == pytest.approx(1.0)
    said = found.sentence("clean")
    assert said.startswith(
        "clean images, weights moved by 5 % of their norm up the gradient: one layer at a time, the loss rises most in"
        " former, +0.5 [+0.4"
    )
    assert "; former minus latter +0.25 [" in said
    assert "; all at once: former +0.5, latter +0.8; of single layers most in a, +0.5 [" in said
    assert found.sentence().startswith("fgsm images")


def test_groups_are_compared_at_once_where_single_layers_were_not_measured() -> None:
    groups = {name: GROUPS[name] for name in ("former", "latter", "whole")}
    most = response(RISES, groups=groups).most("clean")
    assert (most.by, most.first, most.second, most.layer) == ("together", "latter", "former", None)
    assert most.margin is not None
    assert most.margin.value == pytest.approx(0.3)
    assert not most.alone
    assert "the loss rises most with latter, +0.8 [" in most.sentence()


def test_layers_alone_and_one_alone() -> None:
    layers = {name: GROUPS[name] for name in ("a", "b", "c")}
    most = response(RISES, groups=layers).most("clean")
    assert (most.by, most.first, most.second) == ("together", "a", "c")
    assert list(most.together) == ["a", "c", "b"]
    one = response(RISES, groups={"a": GROUPS["a"]}).most("clean")
    assert (one.first, one.second, one.margin, one.told_apart) == ("a", None, None, False)
    assert one.sentence().endswith("the loss rises most with a, +0.5 [+0.469, +0.531]")
    only = response(RISES, groups={"whole": GROUPS["whole"]}).most("clean")
    assert (only.first, only.second) == ("whole", None)


def test_a_difference_within_the_noise_is_not_told_apart() -> None:
    most = response({**RISES, "a": 0.26}, spread=1.0).most("clean")
    assert (most.first, most.told_apart) == ("former", False)
    assert "which is not told apart from 0" in most.sentence()
    at_random = response(RISES, kinds=("random",)).most("clean")
    assert at_random.kind == "random"
    assert not at_random.told_apart
    assert "at random" in at_random.sentence()


def test_intervals_are_paired() -> None:
    after = torch.arange(N) % 4 > 0
    found = response(RISES, correct=after)
    one = found.of("latter", "fgsm", 0.05)
    rises = (one.loss - found.whole["fgsm"].loss).numpy()
    wanted = stats.ttest_1samp(rises, 0).confidence_interval(0.95)
    rise = found.rise(one)
    assert (rise.value, rise.low, rise.high, rise.n) == pytest.approx((rises.mean(), wanted.low, wanted.high, N))
    before = found.whole["fgsm"].correct
    only_after, only_before = int((after & ~before).sum()), int((before & ~after).sum())
    assert found.change(one) == paired_difference(only_after, only_before, N)
    assert found.change(one).value == pytest.approx(float(after.double().mean() - before.double().mean()))
    assert one.accuracy.value == pytest.approx(30 / 40)
    with pytest.raises(KeyError):
        found.of("latter", "fgsm", 0.02)
    with pytest.raises(KeyError):
        found.most("pgd-10")


def test_the_record_is_json_also_where_a_loss_is_infinite() -> None:
    found = response(RISES)
    found.of("b", "clean", 0.05).loss[3] = math.inf
    record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(record["whole"]) == ["clean", "fgsm"]
    assert record["n"] == N
    assert record["untraced"] is None
    assert record["groups"]["latter"] == ["b.weight", "c.weight"]
    assert len(record["moves"]) == 2 * 6 * 2 * 2
    row = next(one for one in record["moves"] if (one["group"], one["rho"]) == ("b", 0.05))
    assert (row["kind"], row["inputs"], row["loss"]) == ("adversarial", "clean", None)
    assert row["rise"] == {"value": None, "low": None, "high": None, "n": N}
    assert row["change"]["value"] == 0
    assert record["most"]["clean"]["first"] == "latter"  # an infinite loss is the largest
    assert record["most"]["clean"]["margin"]["value"] is None
    assert record["most"]["fgsm"]["first"] == "former"
    assert record["most"]["fgsm"]["layer"]["name"] == "a"
    assert record["sentences"] == {name: found.sentence(name) for name in ("clean", "fgsm")}
    assert record["sentence"] == record["sentences"]["fgsm"]


@pytest.mark.parametrize("words", ["a.png", "a.svg", "layers.png", "groups.png", "infinite.png"])
def test_the_picture(words: str, tmp_path: Path) -> None:
    names = {"layers.png": ("a", "b"), "groups.png": ("former", "latter")}.get(words, tuple(GROUPS))
    found = response(RISES, groups={name: GROUPS[name] for name in names})
    if words == "infinite.png":
        found.of("b", "clean", 0.05).loss[3] = math.inf
    draw_responses({"best (step 3)": found, "final (step 9)": found}, tmp_path / words, "a run of $1 and $2")
    if words.endswith("png"):
        with Image.open(tmp_path / words) as picture:
            assert min(picture.size) > 300
    else:
        assert "<svg" in (tmp_path / words).read_text()
