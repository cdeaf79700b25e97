import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gambeson.core.errors import InputError
from gambeson.core.losses import (
    NEEDS_CLEAN,
    boosted_ce,
    ce,
    dlr,
    inner_loss,
    kl,
    margin,
    one_hot,
    squared_error,
    targeted_dlr,
    targeted_margin,
)

N, K = 7, 5
seeds = st.integers(0, 2**32)


def draw(seed: int, k: int = K, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    clean, adv = (scale * torch.randn(N, k, generator=rng, dtype=torch.float64) for _ in range(2))
    return clean, adv, torch.randint(0, k, (N,), generator=rng)


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    e = [math.exp(v - top) for v in row]
    return [v / sum(e) for v in e]


def check(found: Tensor, expected: list[float]) -> None:
    assert found.shape == (len(expected),)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@given(seeds)
def test_ce_by_hand(seed: int) -> None:
    z, _, y = draw(seed)
    check(ce(z, y), [-math.log(softmax(row)[c]) for row, c in zip(z.tolist(), y.tolist(), strict=True)])


@given(seeds)
def test_kl_by_hand_and_never_negative(seed: int) -> None:
    z, a, _ = draw(seed)
    expected = []
    for clean, adv in zip(z.tolist(), a.tolist(), strict=True):
        p, q = softmax(clean), softmax(adv)
        expected.append(sum(pi * (math.log(pi) - math.log(qi)) for pi, qi in zip(p, q, strict=True)))
    check(kl(z, a), expected)
    assert (kl(z, a) >= -1e-12).all()
    assert kl(z, z).abs().max() < 1e-12


def test_kl_is_finite_for_extreme_logits_and_its_gradient_reaches_both_arguments() -> None:
    z = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    a = torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
    assert kl(z, a).isfinite().all()
    clean, adv, _ = draw(0)
    clean.requires_grad_(), adv.requires_grad_()
    for grad in torch.autograd.grad(kl(clean, adv).sum(), [clean, adv]):
        assert grad.abs().min() > 0


@given(seeds)
def test_squared_error_by_hand(seed: int) -> None:
    z, a, y = draw(seed)
    target = a.softmax(1)
    check(
        squared_error(z, target),
        [
            sum((p - t) ** 2 for p, t in zip(softmax(row), goal, strict=True))
            for row, goal in zip(z.tolist(), target.tolist(), strict=True)
        ],
    )
    check(
        squared_error(z, one_hot(y, z)),
        [
            sum((p - (k == c)) ** 2 for k, p in enumerate(softmax(row)))
            for row, c in zip(z.tolist(), y.tolist(), strict=True)
        ],
    )


@given(seeds)
def test_boosted_ce_by_hand(seed: int) -> None:
    z, _, y = draw(seed)
    expected = []
    for row, c in zip(z.tolist(), y.tolist(), strict=True):
        p = softmax(row)
        wrong = max(v for k, v in enumerate(p) if k != c)
        expected.append(-math.log(p[c]) - math.log(1.0001 - wrong + 1e-12))
    check(boosted_ce(z, y), expected)


@given(seeds)
def test_margin_by_hand_and_its_sign_is_the_verdict(seed: int) -> None:
    z, _, y = draw(seed)
    check(
        margin(z, y),
        [max(v for k, v in enumerate(row) if k != c) - row[c] for row, c in zip(z.tolist(), y.tolist(), strict=True)],
    )
    assert torch.equal(margin(z, y) > 0, z.argmax(1) != y)


@given(seeds, st.floats(0.1, 50.0), st.floats(-50.0, 50.0))
def test_dlr_by_hand_and_invariant_to_shift_and_scale(seed: int, scale: float, shift: float) -> None:
    z, _, y = draw(seed)
    expected = []
    for row, c in zip(z.tolist(), y.tolist(), strict=True):
        ordered = sorted(row, reverse=True)
        expected.append((max(v for k, v in enumerate(row) if k != c) - row[c]) / (ordered[0] - ordered[2] + 1e-12))
    check(dlr(z, y), expected)
    torch.testing.assert_close(dlr(scale * z + shift, y), dlr(z, y), rtol=1e-6, atol=1e-9)


def test_dlr_needs_three_classes() -> None:
    z, _, y = draw(0, k=2)
    with pytest.raises(InputError, match="at least 3 classes, got 2"):
        dlr(z, y)
    z, _, y = draw(0, k=3)
    assert dlr(z, y).shape == (N,)


def test_inner_losses_are_what_their_names_say() -> None:
    z, a, y = draw(0)
    expected = {
        "ce": ce(a, y),
        "kl": kl(z, a),
        "squared-error": squared_error(a, one_hot(y, a)),
        "squared-error-clean": squared_error(a, z.softmax(1)),
        "margin": margin(a, y),
    }
    assert set(expected) == set(NEEDS_CLEAN)
    for name, value in expected.items():
        assert torch.equal(inner_loss(name, a, y, z if NEEDS_CLEAN[name] else None), value)  # type: ignore[arg-type]


def test_an_unknown_inner_loss_is_refused_with_a_hint() -> None:
    z, a, y = draw(0)
    with pytest.raises(InputError, match="unknown inner loss 'margins'") as error:
        inner_loss("margins", a, y, z)  # type: ignore[arg-type]
    assert error.value.hint == "did you mean margin?"


def test_a_missing_clean_output_is_not_called_an_unknown_loss() -> None:
    _, a, y = draw(0)
    with pytest.raises(InputError, match="clean"):
        inner_loss("kl", a, y, None)


@given(seeds)
def test_targeted_losses_by_hand(seed: int) -> None:
    z, _, y = draw(seed)
    target = (y + 1) % K
    margins, ratios = [], []
    for row, own, other in zip(z.tolist(), y.tolist(), target.tolist(), strict=True):
        top = sorted(row, reverse=True)
        margins.append(row[other] - row[own])
        ratios.append((row[other] - row[own]) / (top[0] - (top[2] + top[3]) / 2 + 1e-12))
    check(targeted_margin(z, y, target), margins)
    check(targeted_dlr(z, y, target), ratios)


def test_the_targeted_ratio_needs_four_classes() -> None:
    z, _, y = draw(0, k=3)
    with pytest.raises(InputError, match="at least 4 classes, got 3"):
        targeted_dlr(z, y, (y + 1) % 3)
