import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gambeson.core.errors import InputError
from gambeson.core.threat import L2, Linf, Threat, box, create_threat, parse_eps

Kind = Callable[..., Threat]
SHAPE = (4, 2, 5, 5)
kinds = st.sampled_from([Linf, L2])
budgets = st.floats(1e-3, 1.0)
seeds = st.integers(0, 2**32)


def draw(seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(SHAPE, generator=rng)
    return x, x + spread * torch.randn(SHAPE, generator=rng)


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (" 1 / 4 ", 0.25), (0.5, 0.5)])
def test_eps_is_a_number_or_a_fraction(text: float | str, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["eight", "8/", "1/2/3", "8/0", ""])
def test_eps_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="number or a fraction"):
        parse_eps(text)


@pytest.mark.parametrize("eps", [8, -1, 0, 1.0001, math.nan, math.inf, -math.inf, "16/8", "nan"])
def test_linf_refuses_what_is_outside_zero_to_one(eps: float | str) -> None:
    with pytest.raises(InputError, match=r"\(0, 1\], got"):
        Linf(eps)  # type: ignore[arg-type]


def test_the_hint_for_grey_levels_appears_only_where_they_may_be_meant() -> None:
    with pytest.raises(InputError) as error:
        Linf(8)
    assert error.value.hint == "8 grey levels are eps=8/255"
    with pytest.raises(InputError) as error:
        Linf(-1)
    assert error.value.hint is None


@pytest.mark.parametrize("eps", [-1, 0, math.nan, math.inf])
def test_l2_refuses_what_is_not_positive_and_finite(eps: float) -> None:
    with pytest.raises(InputError, match="positive and finite"):
        L2(eps)


def test_strings_become_numbers() -> None:
    assert Linf("8/255") == Linf(8 / 255)  # type: ignore[arg-type]
    assert L2("128/255").eps == 128 / 255  # type: ignore[arg-type]
    assert L2(3.0).eps == 3.0


def test_l2_refuses_a_budget_per_pixel() -> None:
    with pytest.raises(InputError, match="one number per example") as error:
        L2(torch.full((4, 1, 5, 5), 0.1))
    assert error.value.hint == "use Linf for budgets per pixel"
    assert L2(torch.full((4, 1, 1, 1), 0.1)).norm == "L2"


@pytest.mark.parametrize("kind", [Linf, L2])
@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_a_tensor_budget_out_of_range_is_refused(kind: Kind, bad: float) -> None:
    with pytest.raises(InputError):
        kind(torch.tensor([0.1, bad]).view(2, 1, 1, 1))


@pytest.mark.parametrize("kind", [Linf, L2])
def test_a_budget_of_other_than_four_dimensions_is_refused(kind: Kind) -> None:
    for shape in ((4,), (4, 5), (2, 5, 5)):  # they would broadcast against the pixels, not the examples
        with pytest.raises(InputError, match="four dimensions") as error:
            kind(torch.full(shape, 0.1))
        assert error.value.hint == "eps.view(-1, 1, 1, 1) is one budget per example"
    assert float(kind(torch.tensor(0.1)).eps) == pytest.approx(0.1)


def test_some_examples_may_have_no_budget() -> None:
    x, far = draw(0)
    for kind in (Linf, L2):
        found = kind(torch.tensor([0.1, 0.0, 0.1, 0.0]).view(4, 1, 1, 1)).project(far, x)
        assert torch.equal(found[1::2], x[1::2])
    with pytest.raises(InputError, match=r"in \[0, 1\], got 0 to 2"):
        Linf(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1))


def test_create_threat_knows_both_norms_in_any_case() -> None:
    assert create_threat("LINF", "8/255") == Linf(8 / 255)
    assert create_threat("l2", 0.5) == L2(0.5)
    with pytest.raises(InputError, match="unknown norm 'l1'") as error:
        create_threat("l1", 0.5)
    assert error.value.hint == "known: Linf, L2"


def test_box_is_the_image_range() -> None:
    assert box(torch.tensor([-0.5, 0.0, 0.3, 1.0, 7.0])).tolist() == pytest.approx([0, 0, 0.3, 1, 1])


@given(kinds, budgets, seeds)
def test_a_projection_is_inside_the_ball(kind: Kind, eps: float, seed: int) -> None:
    x, far = draw(seed)
    threat = kind(eps)
    assert threat.distance(threat.project(far, x), x).max() <= eps * (1 + 1e-5) + 2e-7


@given(kinds, budgets, seeds)
def test_projecting_twice_is_projecting_once(kind: Kind, eps: float, seed: int) -> None:
    x, far = draw(seed)
    threat = kind(eps)
    once = threat.project(far, x)
    torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=4e-7)


@given(kinds, budgets, seeds)
def test_what_is_inside_stays(kind: Kind, eps: float, seed: int) -> None:
    x, _ = draw(seed)
    threat = kind(eps)
    inside = x + threat.sample(x, torch.Generator().manual_seed(seed), radius=0.99)
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=2e-7)


@given(kinds, budgets, seeds)
def test_no_point_of_the_ball_is_nearer_than_the_projection(kind: Kind, eps: float, seed: int) -> None:
    x, far = draw(seed)
    threat = kind(eps)
    best = (threat.project(far, x) - far).flatten(1).norm(dim=1)
    for k in range(5):
        other = x + threat.sample(x, torch.Generator().manual_seed(seed + k))
        assert ((other - far).flatten(1).norm(dim=1) >= best - 1e-5).all()


@given(kinds, seeds, st.lists(budgets, min_size=SHAPE[0], max_size=SHAPE[0]))
def test_a_budget_per_example_is_as_many_separate_runs(kind: Kind, seed: int, eps: list[float]) -> None:
    x, far = draw(seed)
    together = kind(torch.tensor(eps).view(-1, 1, 1, 1)).project(far, x)
    for i, value in enumerate(eps):
        alone = kind(value).project(far[i : i + 1], x[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=2e-7 if kind is L2 else 0)


@given(budgets, seeds, st.sampled_from([SHAPE, (SHAPE[0], 1, *SHAPE[2:]), (SHAPE[0], 1, 1, 1), (1, 1, 1, 1)]))
def test_a_constant_tensor_is_the_scalar_bit_for_bit(eps: float, seed: int, shape: tuple[int, ...]) -> None:
    x, far = draw(seed)
    scalar, tensor = Linf(eps), Linf(torch.full(shape, eps))
    assert torch.equal(scalar.project(far, x), tensor.project(far, x))
    rng = [torch.Generator().manual_seed(seed) for _ in range(2)]
    assert torch.equal(scalar.sample(x, rng[0]), tensor.sample(x, rng[1]))


def test_a_budget_per_pixel_bounds_every_pixel() -> None:
    x, far = draw(0)
    eps = torch.rand((SHAPE[0], 1, *SHAPE[2:]))
    moved = (Linf(eps).project(far, x) - x).abs()
    assert (moved <= eps + 2e-7).all()
    assert (moved > eps / 2).float().mean() > 0.5  # and not a smaller ball than asked for


@given(kinds, budgets, seeds, st.floats(0.1, 3.0))
def test_a_sample_is_inside_the_radius(kind: Kind, eps: float, seed: int, radius: float) -> None:
    x, _ = draw(seed)
    threat = kind(eps)
    noise = threat.sample(x, torch.Generator().manual_seed(seed), radius)
    assert threat.distance(noise, torch.zeros_like(x)).max() <= radius * eps * (1 + 1e-5)


def test_linf_samples_are_uniform() -> None:
    noise = Linf(0.5).sample(torch.zeros(100, 1, 10, 10), torch.Generator().manual_seed(0))
    counts = torch.histc(noise, bins=10, min=-0.5, max=0.5)
    assert (counts - 1000).abs().max() < 5 * 30  # five standard deviations of a bin


def test_l2_samples_are_uniform_in_the_ball() -> None:
    x = torch.zeros(4000, 1, 1, 3)
    noise = L2(0.5).sample(x, torch.Generator().manual_seed(0)).flatten(1)
    volume = (noise.norm(dim=1) / 0.5) ** 3  # uniform in [0, 1] for a uniform draw
    counts = torch.histc(volume, bins=10, min=0, max=1)
    assert (counts - 400).abs().max() < 5 * 19
    assert (noise.mean(0).abs() < 0.02).all()


@given(seeds)
def test_ascent_directions_have_unit_norm_and_the_largest_inner_product(seed: int) -> None:
    x, far = draw(seed)
    grad = far - x
    flat = grad.flatten(1)
    for threat, dual in ((Linf(1.0), flat.abs().sum(1)), (L2(1.0), flat.norm(dim=1))):
        direction = threat.ascend(grad)
        zero = torch.zeros_like(x)
        torch.testing.assert_close(threat.distance(direction, zero), torch.ones(len(x)))
        gain = (direction * grad).flatten(1).sum(1)
        torch.testing.assert_close(gain, dual)
        other = threat.sample(x, torch.Generator().manual_seed(seed))
        assert ((other * grad).flatten(1).sum(1) <= gain + 1e-4).all()


@pytest.mark.parametrize("kind", [Linf, L2])
def test_where_the_gradient_is_zero_there_is_no_ascent(kind: Kind) -> None:
    assert not kind(0.5).ascend(torch.zeros(SHAPE)).any()


@given(seeds)
def test_distances_are_the_norms(seed: int) -> None:
    x, far = draw(seed)
    for i in range(len(x)):
        values = [float(v) for v in (far[i] - x[i]).flatten()]
        assert float(Linf(1.0).distance(far, x)[i]) == pytest.approx(max(map(abs, values)))
        assert float(L2(1.0).distance(far, x)[i]) == pytest.approx(math.sqrt(sum(v * v for v in values)), rel=1e-5)


def test_with_eps_changes_the_budget_alone() -> None:
    assert Linf(0.1).with_eps(0.2) == Linf(0.2)
    assert L2(0.1).with_eps(0.2) == L2(0.2)
