"""Square Attack against the release, written out image by image, and against that itself where it is installed."""

import inspect
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gambeson.attacks import Jobs, Retired, Square, hunt, square
from gambeson.core.errors import InputError
from gambeson.core.losses import margin
from gambeson.core.streams import Streams, uniform
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Array = np.ndarray[Any, np.dtype[np.float64]]
Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
THREATS = pytest.mark.parametrize("threat", [Linf(0.02), L2(0.2)], ids=["Linf", "L2"])
WIDER = pytest.mark.parametrize("threat", [Linf(0.03), L2(0.4)], ids=["Linf", "L2"])
LIMITS = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]


@pytest.fixture
def double() -> Iterator[None]:
    """Float64 everywhere, also for what the release creates on its own."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def release() -> ModuleType:
    """The module of the installed release."""
    return pytest.importorskip("pyautoattack.square")  # type: ignore[no-any-return]


def jobs_of(x: Tensor, y: Tensor, classes: int = 6) -> Jobs:
    n = len(x)
    return Jobs(x, y, x.new_zeros(n, classes), torch.arange(n), torch.zeros(n, dtype=torch.int64))


def advance(search: Square, net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, threat: Threat, seed: int) -> Any:
    """The state after all queries."""
    state = search.begin(jobs_of(x, y), threat, Streams(seed))
    for _ in range(search.queries + 1):
        search.step(net, state, threat)
    return state


def draws(search: Square, index: int, step: int, lanes: int, turn: int = 0, seed: int = 0) -> Array:
    keys = Streams(seed).keys(search.name, torch.tensor([index]), torch.tensor([turn]))
    return uniform(keys, torch.tensor([step]), lanes)[0].double().numpy()


# The attack, one image (C, H, W) at a time.


def pattern(side: int, lying: bool) -> Array:
    """Two stacks of nested rectangles, the lower one negative."""
    eta = np.zeros((side, side))
    for top, height, sign in ((0, side // 2, 1.0), (side // 2, side - side // 2, -1.0)):
        part = np.zeros((height, side))
        for k in range(max(height // 2, side // 2) + 1):
            rows = slice(max(height // 2 - k, 0), height // 2 + k + 1)
            part[rows, max(side // 2 - k, 0) : side // 2 + k + 1] += 1 / (k + 1) ** 2
        if height:
            eta[top : top + height] = sign * part / np.sqrt((part**2).sum())
    eta = eta / np.sqrt((eta**2).sum())
    return eta.T if lying else eta


def sign(u: float) -> float:
    return -1.0 if u < 0.5 else 1.0


def onto_sphere(x: Array, delta: Array, eps: float) -> Array:
    return np.clip(x + eps * delta / np.sqrt((delta**2).sum()), 0, 1)


def starts(x: Array, norm: str, eps: float, u: Array) -> Array:
    c, h, w = x.shape
    delta = np.zeros_like(x)
    if norm == "Linf":
        for channel in range(c):
            for column in range(w):
                delta[channel, :, column] = eps * sign(u[channel * w + column])
        return np.clip(x + delta, 0, 1)
    side = max(min(h, w) // 5, 1)
    first, tiles = max((min(h, w) - 5 * side) // 2, 0), (h // side) * (w // side)
    for tile in range(tiles):
        top, left = first + tile // (w // side) * side, first + tile % (w // side) * side
        eta = pattern(side, u[tile] > 0.5)
        for channel in range(c):
            for i in range(top, min(top + side, h)):
                for j in range(left, min(left + side, w)):
                    delta[channel, i, j] = sign(u[(1 + channel) * tiles + tile]) * eta[i - top, j - left]
    return onto_sphere(x, delta, eps)


def side_at(query: int, p_init: float, norm: str, h: int, w: int) -> int:
    p = p_init / 2 ** sum(query > limit for limit in LIMITS)
    side = round(math.sqrt(p * h * w))
    if norm == "L2":
        side = max(side, 3)
        side += side % 2 == 0
    return min(max(side, 1), h, w)


def proposal(x: Array, best: Array, query: int, p_init: float, norm: str, eps: float, u: Array) -> Array:
    c, h, w = x.shape
    s = side_at(query, p_init, norm, h, w)
    top, left = int(u[0] * (h - s)), int(u[1] * (w - s))
    into = (slice(top, top + s), slice(left, left + s))
    if norm == "Linf":
        new = best.copy()
        for channel in range(c):
            change = best[channel][into] + 2 * eps * sign(u[5 + channel])
            low, high = x[channel][into] - eps, x[channel][into] + eps
            new[channel][into] = np.clip(np.minimum(np.maximum(change, low), high), 0, 1)
        return new
    delta = best - x
    top, left = int(u[2] * (h - s)), int(u[3] * (w - s))
    source = (slice(top, top + s), slice(left, left + s))
    both = np.zeros((h, w))
    both[into] = both[source] = 1
    free = max(eps**2 - (delta**2).sum(), 0) / c
    new = delta.copy()
    for channel in range(c):
        old = delta[channel][into]
        change = sign(u[5 + channel]) * pattern(s, u[4] > 0.5) + old / (1e-12 + np.sqrt((old**2).sum()))
        mass = ((delta[channel] * both) ** 2).sum() + free
        new[channel][source] = 0
        new[channel][into] = change / (1e-12 + np.sqrt((change**2).sum())) * np.sqrt(mass)
    return onto_sphere(x, new, eps)


class Recorder:
    """A model that is never fooled, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        self.asked.append(x)
        return x.new_tensor([1.0, 0.0]).expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)


SHAPES = [(3, 32, 32), (1, 28, 28), (1, 8, 8), (2, 7, 12), (1, 18, 12), (3, 3, 4), (1, 2, 2), (1, 1, 1)]
QUERIES = [0, 3, 11, 51, 130, 201, 400, 501, 1001, 2001, 4001, 4999]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@THREATS
def test_a_query_is_the_released_one_whatever_the_query_of_the_row(threat: Threat, shape: tuple[int, ...]) -> None:
    search, model, eps = Square(), Recorder(), 8 * float(threat.eps)
    threat = threat.with_eps(eps)
    rng = torch.Generator().manual_seed(0)
    x = torch.rand((len(QUERIES), *shape), generator=rng, dtype=torch.float64)
    y = torch.zeros(len(QUERIES), dtype=torch.int64)
    state = search.begin(jobs_of(x, y), threat, Streams(0))
    for i in range(len(x)):
        u = draws(search, i, 0, (1 + shape[0]) * shape[1] * shape[2])
        first = torch.from_numpy(starts(x[i].numpy(), threat.norm, eps, u))
        torch.testing.assert_close(state["x_adv"][i], first, rtol=0, atol=1e-12)
    search.step(model, state, threat)
    assert torch.equal(model.asked[0], state["x_adv"])  # the first forward is that of the start
    assert state["taken"].tolist() == [1] * len(x)
    best = x + 0.5 * (state["x_adv"] - x) * torch.rand(x.shape, generator=rng, dtype=torch.float64)
    state["x_adv"], state["taken"] = best, torch.tensor(QUERIES) + 1
    search.step(model, state, threat)
    for i, query in enumerate(QUERIES):
        u = draws(search, i, query + 1, 5 + shape[0])
        one = proposal(x[i].numpy(), best[i].numpy(), query, 0.8, threat.norm, eps, u)
        torch.testing.assert_close(model.asked[1][i], torch.from_numpy(one), rtol=0, atol=1e-12)
    assert state["ended"].tolist() == [False] * 11 + [True]


@pytest.mark.parametrize("loss", ["margin", "ce"])
@THREATS
@pytest.mark.usefixtures("double")
def test_the_course_is_that_of_the_installed_release(
    threat: Threat, loss: Any, release: ModuleType, curved_net: Net, labelled: Labelled
) -> None:
    """The release gets our random numbers, for one image at a time."""
    net = curved_net()
    x, y = labelled(net, 10, wrong=1)[:2]
    search = Square(queries=55, loss=loss)

    class Fed(release.SquareAttack):  # type: ignore[name-defined,misc]
        numbers: Iterator[float]

        def random_int(self, low: int = 0, high: int = 1) -> Tensor:
            return torch.tensor([low + (high - low) * next(self.numbers)]).long()

        def random_choice(self, shape: list[int]) -> Tensor:
            return torch.tensor([sign(next(self.numbers)) for _ in range(math.prod(shape))]).view(shape)

        def eta(self, side: int) -> Tensor:
            orientation = torch.tensor([next(self.numbers)])
            with mock.patch("torch.rand", return_value=orientation):
                return super().eta(side)  # type: ignore[no-any-return]

    def numbers(index: int) -> Iterator[float]:
        if threat.norm == "Linf":
            yield from draws(search, index, 0, 16)
        else:
            yield from draws(search, index, 0, 3 * 64).reshape(3, 64).T.flatten()
        for step in range(1, search.queries + 1):
            u = draws(search, index, step, 7)
            yield from u[[0, 1, 5, 6]] if threat.norm == "Linf" else u

    with torch.no_grad():
        ours = advance(search, net, x, y, threat, 0)
    for i in range(len(x)):
        theirs = Fed(net, threat.norm, 55, threat.eps, loss=loss, resc_schedule=False)
        theirs.init_hyperparam(x)
        theirs.numbers = numbers(i)
        taken, best = theirs.attack_single_run(x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(ours["x_adv"][i : i + 1], best, rtol=0, atol=1e-10)
        assert int(ours["taken"][i]) == int(taken)
        assert bool(ours["fooled"][i]) == bool(net(best).argmax(1) != y[i])
    assert 2 < int(ours["fooled"].sum()) < 10
    assert len(ours["taken"].unique()) >= 3


@pytest.mark.parametrize("side", range(1, 30))
def test_the_patterns_are_nested_rectangles_and_the_released_ones(side: int) -> None:
    ours = square._eta(side)
    torch.testing.assert_close(ours, torch.from_numpy(pattern(side, False)), rtol=0, atol=1e-14)
    torch.testing.assert_close(ours.norm(), torch.ones((), dtype=torch.float64))
    released = pytest.importorskip("pyautoattack.square").SquareAttack(None, norm="L2", eps=1.0, device="cpu")
    with mock.patch("torch.rand", return_value=torch.zeros(1)):
        torch.testing.assert_close(ours.float(), released.eta(side), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("queries", "rescale"), [(5000, False), (5000, True), (10000, True), (777, True), (3, True)])
@pytest.mark.parametrize("p_init", [0.8, 0.3])
def test_the_schedule_is_the_released_one_at_every_query(
    queries: int, rescale: bool, p_init: float, release: ModuleType
) -> None:
    theirs = release.SquareAttack(None, eps=1.0, n_queries=queries, p_init=p_init, resc_schedule=rescale)
    search = Square(queries=queries, p_init=p_init, rescale=rescale)
    plan = square._plan(search, "Linf", 32, 32, torch.float64, torch.device("cpu"))
    p = [theirs.p_selection(query) for query in range(queries)]
    assert (p_init * 0.5 ** plan.level.double()).tolist() == p
    assert plan.side.tolist() == [max(round(math.sqrt(share * 1024)), 1) for share in p]
    if queries >= 777:
        assert len(set(p)) == (10 if rescale else 8)


def test_the_schedule_needs_no_release() -> None:
    plan = square._plan(Square(), "L2", 32, 32, torch.float32, torch.device("cpu"))
    assert plan.side.tolist() == [side_at(query, 0.8, "L2", 32, 32) for query in range(5000)]
    assert plan.side.unique().tolist() == [3, 5, 7, 11, 15, 21, 29]


@given(
    st.sampled_from([Linf(0.1), L2(0.5)]),
    st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)),
    st.integers(2, 4),
    st.sampled_from([0, 40, 3000]),
    st.integers(0, 2**40),
    st.sampled_from(["margin", "ce"]),
)
def test_it_stays_inside_ball_and_box_and_the_loss_never_falls(
    threat: Threat, shape: tuple[int, int, int], classes: int, query: int, seed: int, loss: Any
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = (1.5 * torch.rand((4, *shape), generator=rng, dtype=torch.float64) - 0.25).clamp(0, 1)
    weight = torch.randn((math.prod(shape), classes), generator=rng, dtype=torch.float64)
    y = torch.randint(0, classes, (4,), generator=rng)
    y[:2] = (x[:2].flatten(1) @ weight).argmax(1)
    search, eps = Square(loss=loss), float(threat.eps)
    state = search.begin(jobs_of(x, y, classes), threat, Streams(seed))
    before: dict[str, Tensor] = {}
    for step in range(12):
        search.step(lambda images: (images.flatten(1) @ weight).tanh(), state, threat)
        found = state["x_adv"]
        assert found.isfinite().all()
        assert found.min() >= 0
        assert found.max() <= 1
        if threat.norm == "Linf":
            up, down = (x + eps).clamp(0, 1), (x - eps).clamp(0, 1)
            assert torch.equal(torch.where(found > x, up, torch.where(found < x, down, x)), found)
            assert (((found == up) | (found == down)).all()).item()
        assert (threat.distance(found, x) <= eps * (1 + 1e-12)).all()
        if before:
            assert (state["loss_best"] >= before["loss_best"]).all()
            still = before["fooled"]
            assert all(torch.equal(state[name][still], values[still]) for name, values in before.items())
        if step == 0:
            state["taken"] = state["taken"] + query
        before = dict(state)
    wrong = (state["x_adv"].flatten(1) @ weight).tanh().argmax(1) != y
    assert torch.equal(wrong, state["fooled"])


def found_by(net: nn.Module, jobs: Jobs, threat: Threat, slots: int) -> dict[int, Tensor | None]:
    """What `hunt` reports: the adversarial image by example, None where it holds."""
    found: dict[int, Tensor | None] = {}

    def report(retired: Retired) -> None:
        images = iter(retired.x_adv)
        for index, fell in zip(retired.index.tolist(), retired.fooled.tolist(), strict=True):
            assert index not in found
            found[index] = next(images) if fell else None

    hunt(net, Square(queries=12, restarts=2), jobs, threat, Streams(3), report, slots=slots)
    return found


@WIDER
def test_neither_slots_nor_order_change_what_is_found(threat: Threat, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    x, y = labelled(net, 14)[:2]
    jobs = jobs_of(x, y)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(5))
    shuffled = Jobs(*(values[order] for values in jobs))
    found = [found_by(net, jobs, threat, slots) for slots in (1, 3, 64)]
    found += [found_by(net, shuffled, threat, slots) for slots in (1, 3, 64)]
    for other in found[1:]:
        assert other.keys() == found[0].keys() == set(range(14))
        for index, image in found[0].items():
            theirs = other[index]
            assert (image is None) == (theirs is None)
            if image is not None and theirs is not None:
                torch.testing.assert_close(image, theirs, rtol=0, atol=0 if threat.norm == "Linf" else 1e-13)
    assert 3 < sum(image is None for image in found[0].values()) < 11


@WIDER
@pytest.mark.usefixtures("double")
def test_it_falls_as_often_and_as_early_as_under_the_release(
    threat: Threat, release: ModuleType, curved_net: Net, labelled: Labelled
) -> None:
    """Six seeds each; the release draws one square for all images, so that a seed is one observation."""
    net = curved_net()
    x, y = labelled(net, 80)[:2]
    rate: list[list[float]] = [[], []]
    queries: list[list[float]] = [[], []]
    for seed in range(6):
        ours = advance(Square(queries=100), net, x, y, threat, seed)
        torch.manual_seed(seed)
        theirs = release.SquareAttack(net, threat.norm, 100, threat.eps, resc_schedule=False)
        theirs.init_hyperparam(x)
        taken, best = theirs.attack_single_run(x, y)
        for which, fell, count in ((0, ours["fooled"], ours["taken"]), (1, net(best).argmax(1) != y, taken)):
            rate[which].append(float(fell.double().mean()))
            queries[which].append(float(count.double().mean()))
    for values, smallest in ((np.array(rate), 0.01), (np.array(queries), 1.0)):
        noise = np.sqrt(values.var(1, ddof=1).sum() / 6)
        assert abs(values[0].mean() - values[1].mean()) < 3 * noise + smallest / 10, values
        assert noise < 2 * smallest
    assert 0.2 < np.mean(rate) < 0.8


class Drifting(nn.Module):
    """Two classes; the more queries, the smaller the margin, down to exactly zero at the fourth."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        return x.new_tensor([max(4.0 - self.asked, 0), 0.0]).expand(len(x), 2)


def test_equal_logits_are_a_fall_only_where_the_other_class_comes_first() -> None:
    x, y = torch.full((2, 1, 4, 4), 0.5), torch.tensor([0, 0])
    for label in (0, 1):
        model, search = Drifting(), Square(queries=6)
        state = search.begin(jobs_of(x, y + label, 2), Linf(0.1), Streams(0))
        for _ in range(5):
            search.step(lambda images, m=model, k=label: m(images).flip(1) if k else m(images), state, Linf(0.1))
        assert state["fooled"].tolist() == [label == 1] * 2
        assert state["loss_best"].tolist() == [0.0] * 2
        assert state["taken"].tolist() == [4 if label else 5] * 2


def test_rows_that_fell_or_ended_stay_and_a_fall_that_is_taken_back_goes_on() -> None:
    x, y = torch.full((3, 1, 6, 6), 0.5), torch.tensor([1, 0, 0])
    search, threat = Square(queries=4), Linf(0.1)

    def model(images: Tensor) -> Tensor:
        score = -images[:, :, ::2].flatten(1).sum(1)
        return torch.stack([score - 100 * (images[:, 0, 0, 0] < 0), score * 0 - 50], 1)

    state = search.begin(jobs_of(x, y, 2), threat, Streams(0))
    for _ in range(5):
        search.step(model, state, threat)
    assert state["fooled"].tolist() == [True, False, False]
    assert state["taken"].tolist() == [1, 5, 5]
    assert state["ended"].tolist() == [False, True, True]
    kept = dict(state)
    search.step(model, state, threat)
    assert all(torch.equal(state[name], values) for name, values in kept.items())
    state["fooled"] = torch.zeros(3, dtype=torch.bool)
    search.step(model, state, threat)
    assert state["taken"].tolist() == [2, 5, 5]


@THREATS
def test_a_query_costs_one_forward_and_no_backward(threat: Threat, curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    x, y = labelled(net, 5)[:2]
    asked: list[bool] = []
    net.register_forward_hook(lambda module, args, out: asked.append(out.requires_grad or torch.is_grad_enabled()))
    state = Square(queries=3).begin(jobs_of(x, y), threat, Streams(0))
    numbers = torch.get_rng_state()
    for _ in range(4):
        Square(queries=3).step(net, state, threat)
    assert asked == [False] * 4
    assert not any(values.requires_grad for values in state.values())
    assert all(len(values) == 5 for values in state.values())
    assert torch.equal(torch.get_rng_state(), numbers)
    reports: list[Retired] = []
    hunt(net, Square(queries=3), jobs_of(x, y), threat.with_eps(1e-6), Streams(0), reports.append, slots=5)
    assert [one.cost for one in reports] == [(20, 0)]


@THREATS
def test_rounds_examples_and_seeds_have_draws_of_their_own(threat: Threat) -> None:
    x = torch.full((4, 2, 10, 10), 0.5)
    y = index = torch.zeros(4, dtype=torch.int64)
    search, model = Square(restarts=3), Recorder()
    assert search.rounds(10) == 3
    for seed in (0, 1):
        jobs = Jobs(x, y, x.new_zeros(4, 2), index + torch.tensor([0, 0, 1, 0]), torch.tensor([0, 1, 0, 0]))
        state = search.begin(jobs, threat, Streams(seed))
        for _ in range(6):
            search.step(model, state, threat)
    asked = torch.stack(model.asked).view(2, 6, 4, -1)
    assert torch.equal(asked[:, :, 0], asked[:, :, 3])
    for step in range(6):
        different = torch.cat([asked[0, step, :3], asked[1, step, :3]])
        assert len(different.unique(dim=0)) == 6, step


@pytest.mark.parametrize("shape", [(4, 1, 1, 1), (4, 2, 8, 8), (1, 1, 8, 8)])
def test_budgets_per_example_and_pixel_are_kept(shape: tuple[int, ...], curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    x, y = labelled(net, 4)[:2]
    eps = 0.02 * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threats: list[Threat] = [Linf(eps)]
    if len(eps) == eps.numel():
        threats.append(L2(10 * eps))
    for threat in threats:
        state = advance(Square(queries=20), net, x, y, threat, 0)
        if threat.norm == "Linf":
            changes = (state["x_adv"] - x).abs()
            inside = ((x - eps) > 0) & ((x + eps) < 1)
            torch.testing.assert_close(changes[inside], eps.expand_as(x)[inside])
        else:
            assert (threat.distance(state["x_adv"], x) <= 10 * eps.flatten() + 1e-12).all()
            assert (threat.distance(state["x_adv"], x) > 9 * eps.flatten()).all()
        alone = advance(Square(queries=20), net, x[:1], y[:1], threat.with_eps(threat.eps[:1]), 0)  # type: ignore[index]
        torch.testing.assert_close(alone["x_adv"], state["x_adv"][:1], rtol=0, atol=1e-13)


def test_more_queries_find_more(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net()
    x, y = labelled(net, 40)[:2]
    for threat in (Linf(0.02), L2(0.25)):
        start = advance(Square(queries=1), net, x, y, threat, 0)
        end = advance(Square(queries=200), net, x, y, threat, 0)
        assert end["fooled"].sum() > start["fooled"].sum() + 4
        assert (end["fooled"] | ~start["fooled"]).all()
        torch.testing.assert_close(margin(net(end["x_adv"]), y).detach(), end["loss_best"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"queries": 0}, "Square Attack needs queries >= 1, got 0"),
        ({"restarts": 0}, "Square Attack needs restarts >= 1, got 0"),
        ({"p_init": 0.0}, r"p_init, a share of the pixels, in \(0, 1\], got 0.0"),
        ({"p_init": 1.5}, "got 1.5"),
        ({"p_init": float("nan")}, "got nan"),
        ({"loss": "dlr"}, "unknown loss 'dlr'\nhint: known: margin, ce"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Square(**settings)


def test_names_tell_the_losses_apart() -> None:
    assert (Square().name, Square(loss="ce").name) == ("square", "square-ce")


def test_nothing_is_read_back_from_the_device_in_a_step() -> None:
    """A number in Python would wait for the device."""
    for function in (Square.step, square._recoloured, square._gathered, square._square, square._place, uniform):
        source = inspect.getsource(function).split('"""')[-1]
        assert not [w for w in ("float(", "int(", "bool(", ".item", ".any", ".all(", "nonzero", ".cpu") if w in source]
