"""Projections onto hyperplanes in the box, against a linear programme, a bisection, and the release."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from gambeson.attacks.projections import _STEPS, project_l2, project_linf

Project = Callable[[Tensor, Tensor, Tensor], Tensor]
Rng = Callable[[int], torch.Generator]
BOTH = pytest.mark.parametrize("project", [project_linf, project_l2])


def corner(x: Tensor, w: Tensor, up: Tensor) -> Tensor:
    """The step to the point of the box with the largest `<w, x>`, or the smallest; pixels without weight stay."""
    return torch.where(w == 0, 0, (torch.where((w > 0) == up, 1.0, 0.0).to(x) - x))


def offsets(x: Tensor, w: Tensor, share: Tensor) -> Tensor:
    """Hyperplanes at this share of the way to the corner, up for positive shares; beyond 1 they miss the box."""
    far = (corner(x, w, share[:, None] >= 0) * w).sum(1).abs()
    return (w * x).sum(1) + share * far


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Three rows with bounds, zeros, ties and magnitudes that differ; and the share of each, away from +-1."""
    d = draw(st.integers(1, 10))
    pixel = st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1, allow_subnormal=False)
    weight = st.sampled_from([0.0, 1.0, -1.0]) | st.floats(0.01, 3) | st.floats(-3, -0.01)
    share = st.sampled_from([0.0, 0.5]) | st.floats(-0.99, 0.99) | st.floats(1.01, 2) | st.floats(-2, -1.01)
    rows = [
        torch.tensor(draw(st.lists(st.lists(values, min_size=d, max_size=d), min_size=3, max_size=3)))
        for values in (pixel, weight)
    ]
    return rows[0].double(), rows[1].double(), torch.tensor([draw(share) for _ in range(3)], dtype=torch.float64)


def by_programme(x: np.ndarray, w: np.ndarray, b: float) -> float | None:
    """The smallest maximum norm: minimise s over (delta, s) with -s <= delta <= s. None if no image is on the plane."""
    d = len(x)
    eye, one = np.eye(d), np.ones((d, 1))
    found = linprog(
        np.append(np.zeros(d), 1),
        A_ub=np.block([[eye, -one], [-eye, -one]]),
        b_ub=np.zeros(2 * d),
        A_eq=np.append(w, 0)[None],
        b_eq=[b - w @ x],
        bounds=[*zip(-x, 1 - x, strict=True), (0, None)],
    )
    return float(found.fun) if found.status == 0 else None


def by_bisection(x: np.ndarray, w: np.ndarray, b: float) -> np.ndarray:
    """The point of the box and the plane that is nearest to x: `clip(x - s w)` for the right s."""
    low, high = -1e4, 1e4
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if w @ np.clip(x - middle * w, 0, 1) > b else (low, middle)
    return np.asarray(np.clip(x - low * w, 0, 1))


@BOTH
@settings(max_examples=15)
@given(problem=problems())
def test_the_step_is_feasible_and_the_smallest(project: Project, problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, w, share = problem
    b = offsets(x, w, share)
    delta = project(x, w, b)
    assert bool(delta.isfinite().all())
    assert float((x + delta).min()) >= -1e-12
    assert float((x + delta).max()) <= 1 + 1e-12
    assert not delta[w == 0].any()
    for i in range(3):
        if not w[i].any():
            continue
        if abs(share[i]) > 1:
            torch.testing.assert_close(delta[i : i + 1], corner(x, w, share[:, None] >= 0)[i : i + 1], rtol=0, atol=0)
            continue
        assert float(w[i] @ (x[i] + delta[i])) == pytest.approx(float(b[i]), abs=1e-12)
        if project is project_linf:
            norm = by_programme(x[i].numpy(), w[i].numpy(), float(b[i]))
            assert float(delta[i].abs().max()) == pytest.approx(norm, abs=2e-7)  # the programme is solved to 1e-7
        else:
            nearest = by_bisection(x[i].numpy(), w[i].numpy(), float(b[i]))
            np.testing.assert_allclose((x[i] + delta[i]).numpy(), nearest, rtol=0, atol=1e-9)


@BOTH
def test_points_on_the_plane_stay_and_normals_of_zero_move_nothing(project: Project, generator: Rng) -> None:
    x = torch.rand(4, 50, generator=generator(0), dtype=torch.float64)
    w = torch.randn(4, 50, generator=generator(1), dtype=torch.float64)
    w[1] = 0
    b = (w * x).sum(1)
    b[1], b[2] = 3.0, 7.0
    delta = project(x, w, b)
    assert float(delta[[0, 3]].abs().max()) < 1e-14
    assert not delta[1].any()
    assert delta[2].all()
    assert not project(x, torch.zeros_like(w), torch.zeros_like(b)).any()


@BOTH
def test_in_large_images_it_is_the_released_one(project: Project, generator: Rng) -> None:
    release = pytest.importorskip("pyautoattack.fab_projections")
    theirs = release.projection_linf if project is project_linf else release.projection_l2
    x = (torch.rand(40, 3072, generator=generator(0)) * 1.5 - 0.25).clamp(0, 1)  # a third of it at its bounds
    w = torch.randn(40, 3072, generator=generator(1)) * torch.rand(40, 3072, generator=generator(2)) ** 3
    w[w.abs() < 1e-7] = 0  # the release leaves out what is below 1e-8
    w[:, ::10] = 0
    share = torch.cat([torch.linspace(-0.95, 0.95, 37), torch.tensor([1.5, -1.5, 1.01])])
    b = offsets(x, w, share)
    torch.testing.assert_close(project(x, w, b), theirs(x, w, b), rtol=0, atol=2e-5)
    double = [t.double() for t in (x, w, b)]
    torch.testing.assert_close(project(x, w, b).double(), project(*double), rtol=0, atol=2e-5)
    near = share.abs() <= 0.5
    torch.testing.assert_close(project(x, w, b)[near], theirs(x, w, b)[near], rtol=0, atol=1e-6)


@BOTH
def test_points_share_hyperplanes_and_images_keep_their_shape(project: Project, generator: Rng) -> None:
    x = torch.rand(2, 5, 3, 4, 4, generator=generator(0), dtype=torch.float64)
    w = torch.randn(5, 3, 4, 4, generator=generator(1), dtype=torch.float64)
    b = torch.linspace(-3, 3, 5, dtype=torch.float64)
    delta = project(x, w, b)
    assert delta.shape == x.shape
    for k in range(2):
        flat = project(x[k].flatten(1), w.flatten(1), b)
        torch.testing.assert_close(delta[k].flatten(1), flat, rtol=0, atol=1e-14)
    channels_last = w.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(project(x, channels_last, b), delta, rtol=0, atol=1e-14)


@BOTH
def test_a_row_does_not_depend_on_the_rows_beside_it(project: Project, generator: Rng) -> None:
    """The loop ends when all rows have settled: one that has settled earlier must not be changed by further steps."""
    x = torch.rand(6, 300, generator=generator(0))
    w = torch.randn(6, 300, generator=generator(1))
    b = offsets(x, w, torch.tensor([0.01, 0.3, 0.99999, 0.0, 1.2, -0.5]))
    together = project(x, w, b)
    for i in range(6):
        assert torch.equal(project(x[i : i + 1], w[i : i + 1], b[i : i + 1])[0], together[i])


@BOTH
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e25])
def test_the_size_of_the_gradient_does_not_matter(project: Project, scale: float, generator: Rng) -> None:
    x = torch.rand(3, 40, generator=generator(0))
    w = torch.randn(3, 40, generator=generator(1))
    b = offsets(x, w, torch.tensor([0.2, -0.6, 1.5]))
    torch.testing.assert_close(project(x, scale * w, scale * b), project(x, w, b), rtol=0, atol=2e-6)


@BOTH
def test_the_bound_on_what_is_left_holds_for_the_hardest_rows(project: Project) -> None:
    """Every Newton step sees the slope or the residual halved; their fixed number does not reach the plane."""
    w = 2.0 ** -(torch.arange(4000, dtype=torch.float64)[None] / 80)
    x = torch.linspace(0, 1, 4000, dtype=torch.float64)[None]
    share = 1 - torch.logspace(-12, -1, 30, dtype=torch.float64)
    w, x = w.expand(30, -1), x.expand(30, -1)
    b = offsets(x, w, -share)
    left = (w * (x + project(x, w, b))).sum(1) - b
    whole = 2.0**-_STEPS * w.sum(1) if project is project_linf else 4 ** (-_STEPS / 3) * 4000**0.5 * w.norm(dim=1)
    assert float(left.min()) > -1e-12  # not beyond the plane
    assert float(left.max()) > 1e-9  # these are hard
    assert bool((left <= whole).all())
    assert float((left / ((w * x).sum(1) - b)).max()) < 1e-3
    beyond = project(x, w, offsets(x, w, share - 2))  # just out of reach: the corner, whatever the number of steps
    assert torch.equal(beyond, -x)


@BOTH
def test_no_step_waits_for_the_device(project: Project) -> None:
    """A tensor without storage cannot be read back."""
    x, w, b = torch.rand(2, 3, 4, device="meta"), torch.rand(3, 4, device="meta"), torch.rand(3, device="meta")
    assert project(x, w, b).shape == x.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.equal(x, x)
