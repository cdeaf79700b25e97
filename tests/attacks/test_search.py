"""Searches in slots: the same result for every number of slots, order and interruption, and costs that are counted."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from gambeson.attacks import FAB, MD, AutoPGD, Jobs, Retired, Search, Square, apgd, hunt
from gambeson.attacks.apgd import Loss
from gambeson.attacks.search import Forward, State, batch_sizes, most_steps, noise
from gambeson.attacks.starts import boundary
from gambeson.core.errors import InputError
from gambeson.core.losses import ce, dlr, margin, targeted_dlr
from gambeson.core.streams import Streams
from gambeson.core.threat import L2, Linf, Threat
from gambeson.core.types import Batch

Net = Callable[..., nn.Sequential]
Labelled = Callable[..., Batch]
Snapshot = Callable[[nn.Module], dict[str, Tensor]]


@pytest.fixture
def setting(curved_net: Net, labelled: Labelled) -> tuple[nn.Module, Jobs]:
    net = curved_net().double().eval()
    batch = labelled(net, 23, wrong=0)
    return net, jobs_of(net, batch.x.double(), batch.y)


def jobs_of(net: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None) -> Jobs:
    with torch.no_grad():
        logits = net(x)
    index = torch.arange(len(x)) if index is None else index
    return Jobs(x, y, logits, index, torch.zeros_like(index))


def run(net: nn.Module, search: AutoPGD, jobs: Jobs, threat: Threat, **settings: int) -> dict[int, Tensor | None]:
    """By example, its adversarial image, or None where it did not fall."""
    found: dict[int, Tensor | None] = {}

    def report(retired: Retired) -> None:
        images = iter(retired.x_adv)
        for index, fell in zip(retired.index.tolist(), retired.fooled.tolist(), strict=True):
            assert index not in found
            found[index] = next(images).clone() if fell else None
        assert next(images, None) is None

    hunt(net, search, jobs, threat, Streams(3), report, **settings)  # type: ignore[arg-type]
    return found


def same(a: dict[int, Tensor | None], b: dict[int, Tensor | None]) -> None:
    assert a.keys() == b.keys()
    for index, image in a.items():
        other = b[index]
        assert (image is None) == (other is None)
        if image is not None and other is not None:
            torch.testing.assert_close(image, other, rtol=0, atol=1e-12)


SEARCHES = [
    AutoPGD(loss="ce", steps=12),
    AutoPGD(loss="dlr", steps=9, restarts=2),
    AutoPGD(loss="dlr-targeted", steps=7, targets=3, restarts=2),
]
THREATS = [Linf(0.012), L2(0.08)]


@pytest.mark.parametrize("threat", THREATS, ids=["Linf", "L2"])
@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: s.name)
def test_neither_slots_nor_order_nor_neighbours_matter(
    setting: tuple[nn.Module, Jobs], search: AutoPGD, threat: Threat
) -> None:
    net, jobs = setting
    whole = run(net, search, jobs, threat, slots=64)
    assert sorted(whole) == list(range(23))
    fell = sum(image is not None for image in whole.values())
    assert 3 < fell < 21, fell
    for slots in (1, 4, 23):
        same(run(net, search, jobs, threat, slots=slots), whole)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    same(run(net, search, Jobs(*(t[order] for t in jobs)), threat, slots=6), whole)
    some = Jobs(*(t[5:11] for t in jobs))
    same(run(net, search, some, threat, slots=4), {index: whole[index] for index in range(5, 11)})


@pytest.mark.parametrize("threat", THREATS, ids=["Linf", "L2"])
def test_looking_seldom_changes_images_but_no_verdict(setting: tuple[nn.Module, Jobs], threat: Threat) -> None:
    net, jobs = setting
    often, seldom = (run(net, SEARCHES[2], jobs, threat, slots=5, every=every) for every in (1, 4))
    assert {k for k, v in often.items() if v is None} == {k for k, v in seldom.items() if v is None}


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin", "dlr-targeted"])
@pytest.mark.parametrize("threat", THREATS, ids=["Linf", "L2"])
def test_verdicts_are_those_of_whole_ascents_without_retirement(
    setting: tuple[nn.Module, Jobs], threat: Threat, loss: Loss
) -> None:
    """The slow path: every round of every example to its last step, by `apgd`, from the same starts."""
    net, jobs = setting
    search = AutoPGD(loss=loss, steps=10, restarts=2, targets=3)
    found = run(net, search, jobs, threat, slots=7)
    draw = torch.rand if threat.norm == "Linf" else torch.randn
    fooled = torch.zeros(23, dtype=torch.bool)
    ranks = jobs.logits.argsort(1, descending=True)
    for turn in range(6 if loss == "dlr-targeted" else 2):
        here = jobs._replace(round=torch.full((23,), turn))
        start = boundary(jobs.x, threat, noise(here, search.name, Streams(3), draw))
        target = ranks[:, 1 + turn // 2]

        def value(logits: Tensor, target: Tensor = target) -> Tensor:
            plain = {"ce": ce, "dlr": dlr, "margin": margin}
            return plain[loss](logits, jobs.y) if loss in plain else targeted_dlr(logits, jobs.y, target)

        fooled |= apgd(net, jobs.x, jobs.y, value, start, threat, steps=10).fooled
    assert [found[i] is not None for i in range(23)] == fooled.tolist()
    assert 3 < int(fooled.sum()) < 21
    for index, image in found.items():
        if image is not None:
            assert float(threat.distance(image[None], jobs.x[index : index + 1])) <= float(threat.eps) * (1 + 1e-9)
            assert 0 <= image.min() <= image.max() <= 1
            assert int(net(image[None]).argmax()) != int(jobs.y[index])


@dataclass(frozen=True)
class Countdown:
    """Falls after as many steps as the label says; never for label 0, which takes two rounds of 5 steps."""

    name: str = "countdown"
    length: int = 5

    def rounds(self, num_classes: int) -> int:
        return 2

    def begin(self, jobs: Jobs, threat: Threat, streams: Streams) -> State:
        no = torch.zeros(len(jobs.y), dtype=torch.bool)
        count = torch.zeros_like(jobs.y)
        return {"x": jobs.x, "y": jobs.y, "x_adv": jobs.x, "fooled": no, "ended": no, "count": count}

    def step(self, model: Forward, state: State, threat: Threat) -> None:
        with torch.no_grad():
            model(state["x_adv"])
        state["count"] = state["count"] + 1
        state["fooled"] = (state["y"] > 0) & (state["count"] >= state["y"])
        state["ended"] = state["count"] >= 5


def test_slots_are_refilled_and_the_batch_shrinks() -> None:
    sizes: list[int] = []

    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1)[:, :3]

    y = torch.tensor([1, 0, 2, 1, 3, 1])
    reports: list[Retired] = []
    jobs = jobs_of(Identity(), torch.rand(6, 1, 2, 2), y)
    sizes.clear()
    hunt(Identity(), Countdown(), jobs, Linf(0.1), Streams(0), reports.append, slots=2)
    # slot 0: example 0 (1 step), 2 (2), 3 (1), 4 (3), 5 (1): 8 steps; slot 1: example 1, two rounds of 5 steps
    assert sizes == [2] * 8 + [1] * 2
    assert [one.index.tolist() for one in reports] == [[0], [2], [3], [4], [5], [1]]
    assert [one.fooled.tolist() for one in reports] == [[True]] * 5 + [[False]]
    assert sum(one.cost.forwards for one in reports) == 18
    assert sum(one.cost.backwards for one in reports) == 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize(
    "search",
    [
        *SEARCHES,
        FAB(steps=6, targeted=True, targets=2),
        MD(steps=8, change=3, restarts=2),
        Square(queries=9, restarts=2),
    ],
    ids=lambda s: s.name,
)
def test_where_nothing_falls_the_steps_are_as_many_as_was_said(
    setting: tuple[nn.Module, Jobs], search: Search, every: int
) -> None:
    net, jobs = setting
    ticks: list[int] = []
    reports: list[Retired] = []
    classes = jobs.logits.shape[1]
    tell = lambda: ticks.append(1)  # noqa: E731
    hunt(net, search, jobs, Linf(1e-9), Streams(0), reports.append, slots=9, every=every, tick=tell)

    assert not any(one.fooled.any() for one in reports)
    assert (
        len(ticks)
        == most_steps(search, 23, classes, slots=9, every=every)
        == 3 * most_steps(search, 9, classes, slots=9, every=every)
    )


def test_falls_make_a_search_shorter_than_was_said(setting: tuple[nn.Module, Jobs]) -> None:
    net, jobs = setting
    ticks: list[int] = []
    reports: list[Retired] = []
    hunt(net, SEARCHES[2], jobs, THREATS[0], Streams(3), reports.append, slots=4, tick=lambda: ticks.append(1))

    assert any(one.fooled.any() for one in reports)
    assert len(ticks) < most_steps(SEARCHES[2], 23, jobs.logits.shape[1], slots=4)


def test_costs_are_counted(setting: tuple[nn.Module, Jobs]) -> None:
    net, jobs = setting
    costs = []
    hunt(net, AutoPGD(steps=10), jobs, Linf(1e-6), Streams(0), lambda one: costs.append(one.cost), slots=64)
    assert sum(cost.forwards for cost in costs) == sum(cost.backwards for cost in costs) == 23 * 11
    costs.clear()
    hunt(net, FAB(targeted=False, steps=3), jobs, Linf(1e-6), Streams(0), lambda one: costs.append(one.cost), slots=64)
    assert sum(cost.forwards for cost in costs) == 23 * 3 * 2
    assert sum(cost.backwards for cost in costs) == 23 * 3 * 5  # one for each wrong class
    costs.clear()
    hunt(net, AutoPGD(steps=10, eot=3), jobs, Linf(1e-6), Streams(0), lambda one: costs.append(one.cost), slots=64)
    assert sum(cost.backwards for cost in costs) == 23 * 11 * 3


def test_a_fall_in_low_precision_counts_only_if_the_model_confirms_it(curved_net: Net, labelled: Labelled) -> None:
    net = curved_net().eval()
    batch = labelled(net, 16, wrong=0)
    jobs, threat, calls = jobs_of(net, batch.x, batch.y), Linf(1e-7), []

    class Rough(nn.Module):
        """Wrong about everything under autocast, as no image deserves in float32."""

        def forward(self, x: Tensor) -> Tensor:
            calls.append(torch.is_autocast_enabled("cpu"))
            logits = net(x)
            return -logits if torch.is_autocast_enabled("cpu") else logits  # type: ignore[no-any-return]

    reports: list[Retired] = []
    hunt(Rough(), AutoPGD(steps=3), jobs, threat, Streams(0), reports.append, dtype=torch.bfloat16)
    assert not any(bool(one.fooled.any()) for one in reports)
    assert set(calls) == {True, False}
    reports.clear()
    hunt(Rough(), AutoPGD(steps=3), jobs, Linf(0.2), Streams(0), reports.append, dtype=torch.bfloat16)
    fell = torch.cat([one.index[one.fooled] for one in reports])
    images = torch.cat([one.x_adv for one in reports])
    assert len(fell) > 0
    with torch.no_grad():
        assert bool((net(images).argmax(1) != batch.y[fell]).all())


def test_a_stand_in_is_searched_and_the_model_decides(curved_net: Net, labelled: Labelled, snapshot: Snapshot) -> None:
    net, other = curved_net(), curved_net(seed=5).train()
    batch = labelled(net)
    reports: list[Retired] = []
    jobs, threat = jobs_of(net, batch.x, batch.y), Linf(1e-7)
    before = snapshot(other)
    hunt(net, AutoPGD(steps=3), jobs, threat, Streams(0), reports.append, stand_in=other)
    with torch.no_grad():
        assert bool((copy.deepcopy(other).eval()(batch.x).argmax(1) != batch.y).any())  # it would have them fallen
    assert not any(bool(one.fooled.any()) for one in reports)
    assert all(torch.equal(t, before[name]) for name, t in other.state_dict().items())
    assert all(m.training for m in other.modules())
    assert all(p.requires_grad for p in other.parameters())
    reports.clear()
    hunt(net, AutoPGD(steps=3), jobs, Linf(0.2), Streams(0), reports.append, stand_in=other)
    fell = torch.cat([one.index[one.fooled] for one in reports])
    images = torch.cat([one.x_adv for one in reports])
    assert len(fell) > 0
    with torch.no_grad():
        assert bool((net(images).argmax(1) != batch.y[fell]).all())


def test_the_model_comes_back_as_it_was(curved_net: Net, labelled: Labelled, snapshot: Snapshot) -> None:
    net = curved_net().train()
    batch = labelled(net)
    jobs = jobs_of(net, batch.x, batch.y)
    before, numbers = snapshot(net), torch.get_rng_state()

    def stop(_: Retired) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hunt(net, AutoPGD(steps=2), jobs, Linf(0.01), Streams(0), stop)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(m.training for m in net.modules())
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.parametrize("buckets", [False, True])
def test_no_row_is_idle_on_the_cpu_and_few_shapes_are_seen_elsewhere(
    buckets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Identity(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return x.flatten(1)[:, :3]

    if buckets:
        monkeypatch.setattr("gambeson.attacks.search.batch_sizes", lambda slots, device_type: batch_sizes(slots))
    y = torch.tensor([1] * 3 + [2] * 5 + [4] * 12)  # fall after so many steps
    reports: list[Retired] = []
    jobs = jobs_of(Identity(), torch.rand(20, 1, 2, 2), y)
    sizes.clear()
    hunt(Identity(), Countdown(), jobs, Linf(0.1), Streams(0), reports.append, slots=20)
    assert sizes == ([20, 18, 12, 12] if buckets else [20, 17, 12, 12])
    assert sorted(index for one in reports for index in one.index.tolist()) == list(range(20))
    assert all(bool(one.fooled.all()) for one in reports)


def test_images_may_be_bytes(curved_net: Net) -> None:
    net = curved_net()
    x = torch.randint(0, 256, (8, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    unit = (x.float() / 255).double()
    jobs = jobs_of(net, unit, net(unit).argmax(1))
    found = run(net, SEARCHES[0], jobs, Linf(0.02))
    assert any(image is not None for image in found.values())
    same(run(net, SEARCHES[0], jobs._replace(x=x), Linf(0.02)), found)


def test_sizes_are_few_and_end_at_the_slots() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(6) == [1, 2, 3, 4, 5, 6]
    assert batch_sizes(100) == [1, 2, 4, 8, 12, 24, 36, 48, 60, 72, 84, 96, 100]
    assert batch_sizes(6, "cpu") == batch_sizes(6)
    assert batch_sizes(100, "cpu") == list(range(1, 101))


@pytest.mark.parametrize("loss", ["dlr", "dlr-targeted"])
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_take_the_margin(loss: Loss, classes: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).double()
    x = torch.rand(9, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    search = AutoPGD(loss=loss, steps=5)
    assert search.rounds(classes) == (classes - 1 if loss == "dlr-targeted" else 1)
    found = run(net, search, jobs_of(net, x, y), Linf(0.5))
    assert any(image is not None for image in found.values())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="unknown loss 'cw'"):
        AutoPGD(loss="cw")  # type: ignore[arg-type]
    for wrong in ({"steps": 0}, {"restarts": 0}, {"targets": 0}, {"eot": 0}):
        with pytest.raises(InputError, match="got 0"):
            AutoPGD(**wrong)  # type: ignore[arg-type]
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    jobs = jobs_of(net, torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
    for wrong in ({"slots": 0}, {"every": 0}):
        with pytest.raises(InputError, match="got 0"):
            hunt(net, AutoPGD(), jobs, Linf(0.1), Streams(0), print, **wrong)  # type: ignore[arg-type]
    hunt(net, AutoPGD(), Jobs(*(t[:0] for t in jobs)), Linf(0.1), Streams(0), print)
