import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gambeson.core.errors import InputError
from gambeson.parts.objectives import CrossEntropy, Mart, Objective, Score, SquaredError, Trades, clip_bound

N, K = 6, 4
seeds = st.integers(0, 2**32)


def draw(seed: int) -> tuple[dict[str, Tensor], Tensor, list[tuple[list[float], list[float], int]]]:
    rng = torch.Generator().manual_seed(seed)
    logits = {view: 2 * torch.randn(N, K, generator=rng, dtype=torch.float64) for view in ("clean", "adv")}
    y = torch.randint(0, K, (N,), generator=rng)
    rows = [
        (softmax(c), softmax(a), label)
        for c, a, label in zip(logits["clean"].tolist(), logits["adv"].tolist(), y.tolist(), strict=True)
    ]
    return logits, y, rows


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(v) for v in row]
    return [v / sum(e) for v in e]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def distance(p: list[float], q: list[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(p, q, strict=True))


def label(y: int) -> list[float]:
    return [float(k == y) for k in range(K)]


def check(objective: Objective, logits: dict[str, Tensor], y: Tensor, expected: list[float], tol: float = 1e-9) -> None:
    needed = {view: logits[view] for view in objective.views}  # nothing but the views it names
    torch.testing.assert_close(objective(needed, y), torch.tensor(expected, dtype=torch.float64), rtol=tol, atol=tol)


@given(seeds)
def test_cross_entropy(seed: int) -> None:
    logits, y, rows = draw(seed)
    check(CrossEntropy("clean"), logits, y, [-math.log(p[c]) for p, _, c in rows])
    check(CrossEntropy("adv"), logits, y, [-math.log(q[c]) for _, q, c in rows])
    assert CrossEntropy("clean").views == ("clean",)
    assert CrossEntropy().views == ("adv",)


@given(seeds, st.floats(0, 10))
def test_trades(seed: int, beta: float) -> None:
    logits, y, rows = draw(seed)
    check(Trades(beta), logits, y, [-math.log(p[c]) + beta * divergence(p, q) for p, q, c in rows])


@given(seeds, st.floats(0, 10))
def test_mart(seed: int, beta: float) -> None:
    logits, y, rows = draw(seed)
    expected = []
    for p, q, c in rows:
        wrong = max(v for k, v in enumerate(q) if k != c)
        boosted = -math.log(q[c]) - math.log(1.0001 - wrong + 1e-12)
        expected.append(boosted + beta * divergence(p, q) * (1.0000001 - p[c]))
    check(Mart(beta), logits, y, expected, tol=1e-8)


def test_mart_is_finite_for_confident_predictions() -> None:
    z = torch.tensor([[1e3, 0.0, 0.0, 0.0]])
    for y in (0, 1):
        assert Mart()({"clean": z, "adv": z.flip(1)}, torch.tensor([y])).isfinite().all()


@given(seeds, st.floats(0, 0.99))
def test_squared_error(seed: int, clip: float) -> None:
    logits, y, rows = draw(seed)
    bound = clip * clip * K / (K - 1)
    check(SquaredError(clip), logits, y, [max(0.0, distance(q, label(c)) - bound) for _, q, c in rows])


@given(seeds, st.floats(0, 10), st.floats(0, 0.99), st.booleans())
def test_score(seed: int, beta: float, clip: float, clip_clean: bool) -> None:
    logits, y, rows = draw(seed)
    bound = clip * clip * K / (K - 1)
    expected = []
    for p, q, c in rows:
        natural, robust = distance(p, label(c)), beta * distance(q, p)
        expected.append(max(0.0, natural + robust - bound) if clip_clean else natural + max(0.0, robust - bound))
    check(Score(beta, clip, clip_clean), logits, y, expected)


@pytest.mark.parametrize(
    "objective", [CrossEntropy(), Trades(), Mart(), SquaredError(0.1), Score(), Score(clip_clean=False)]
)
def test_the_gradient_is_that_of_the_whole_formula(objective: Objective) -> None:
    """By finite differences: nothing is detached."""
    logits, y, _ = draw(0)
    views = list(dict.fromkeys(objective.views))
    inputs = tuple(logits[view].requires_grad_() for view in views)
    assert torch.autograd.gradcheck(lambda *z: objective(dict(zip(views, z, strict=True)), y), inputs)
    for grad in torch.autograd.grad(objective(dict(zip(views, inputs, strict=True)), y).sum(), inputs):
        assert grad.abs().max() > 1e-6


def test_views_in_the_order_of_the_releases() -> None:
    assert Trades().views == ("clean", "adv", "clean")
    assert Mart().views == Score().views == ("clean", "adv")
    assert SquaredError().views == ("adv",)


@given(st.floats(0, 0.999), st.integers(2, 200))
def test_clip_bound_is_the_squared_error_of_a_prediction_with_confidence_one_minus_c(c: float, classes: int) -> None:
    prediction = [1 - c] + [c / (classes - 1)] * (classes - 1)
    expected = sum((p - (k == 0)) ** 2 for k, p in enumerate(prediction))
    assert clip_bound(c, classes) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("c", "classes"), [(1.0, 10), (-0.1, 10), (math.nan, 10), (0.3, 1)])
def test_clip_bound_refuses_what_is_no_confidence(c: float, classes: int) -> None:
    with pytest.raises(InputError, match="0 <= c < 1"):
        clip_bound(c, classes)
