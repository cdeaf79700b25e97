"""Attacks in slots: every example advances at its own pace, retires when it falls, and makes room for the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from gambeson.attacks.attack import per_image, require
from gambeson.core.modes import batch_norm, frozen
from gambeson.core.parameters import like_of
from gambeson.core.streams import Streams

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from gambeson.core.threat import Threat
    from gambeson.core.types import Batch

Forward = Callable[["Tensor"], "Tensor"]
"""A model as a search sees it: images `(N, C, H, W)` to logits `(N, K)`."""

State = dict[str, "Tensor"]
"""What a search knows of the examples in its slots: tensors with one row per slot."""


class Jobs(NamedTuple):
    """Examples that begin a round of a search.

    `hunt` takes them on the CPU, and gives the search some of them on the device of the model, in its type.

    Attributes:
        x: Clean images in [0, 1], `(M, C, H, W)`; for `hunt` uint8 too.
        y: Labels, int64 `(M,)`.
        logits: Clean logits `(M, K)`.
        index: Number of each example in the whole set, int64 `(M,)`; its random draws depend on it and on the round.
        round: Which round (restart or target) begins, int64 `(M,)`.
    """

    x: Tensor
    y: Tensor
    logits: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody wants here
    round: Tensor


class Search(Protocol):
    """An attack that can be advanced step by step, with every slot at its own step. Frozen; its state is a `State`.

    What a row becomes depends on its own example, round and seed, never on the rows beside it (up to the rounding of
    the model's forward): that makes retiring, refilling, sharding and resuming exact.
    """

    @property
    def name(self) -> str:
        """A short name, such as `"apgd-ce"`; addresses the random draws."""

    @property
    def length(self) -> int:
        """How many steps a round has that finds nothing, the one that ends it included."""

    def rounds(self, num_classes: int) -> int:
        """How many rounds an example that does not fall goes through."""

    def begin(self, jobs: Jobs, threat: Threat, streams: Streams) -> State:
        """The rows of new examples, without a look at the model.

        Returns:
            Tensors with M rows. `x` (clean images) and `y` are among them; `x_adv`, the images to report; `fooled`,
            bool `(M,)`, whether they are adversarial and inside the ball; and `ended`, bool `(M,)`: no step is left in
            this round.
        """

    def step(self, model: Forward, state: State, threat: Threat) -> None:
        """Advance all rows by one step, by new values in `state`; rows that have ended or fallen may move no more.

        The caller has frozen the model and set its modes. Nothing waits for the device here.
        """


class Cost(NamedTuple):
    """Images that went through the model: forward, and backward to the images."""

    forwards: int
    backwards: int


class Retired(NamedTuple):
    """Examples with which a search is through.

    Attributes:
        index: Their numbers, int64 `(M,)`, on the CPU.
        fooled: Whether they fell, bool `(M,)`, on the CPU.
        x_adv: Adversarial images of those that fell, `(fooled.sum(), C, H, W)`, on the device.
        cost: What the search has cost since the last report.
    """

    index: Tensor  # type: ignore[assignment]
    fooled: Tensor
    x_adv: Tensor
    cost: Cost


def hunt(
    model: nn.Module,
    search: Search,
    jobs: Jobs,
    threat: Threat,
    streams: Streams,
    report: Callable[[Retired], None],
    *,
    slots: int = 128,
    every: int = 1,
    dtype: torch.dtype | None = None,
    stand_in: nn.Module | None = None,
    tick: Callable[[], None] | None = None,
) -> None:
    """Run a search on every example, `slots` of them at a time.

    An example leaves its slot when it falls or when its last round has ended, and the next one takes the slot. Once no
    example waits, the batch shrinks: on the CPU with every example, elsewhere through few fixed sizes (`batch_sizes`),
    so that kernels and compiled graphs are made for few shapes.

    Args:
        model: Maps images in [0, 1] to logits; evaluated in evaluation mode and as before afterwards.
        search: The attack.
        jobs: The examples, in the order in which they are begun; `round` is where each begins, usually 0.
        threat: What may change.
        streams: The randomness.
        report: Called with the examples that are through, as soon as they are.
        slots: Examples at a time.
        every: Steps between looks at who has fallen; each look waits for the device.
        dtype: Search under autocast to this type, such as `torch.bfloat16`; every fall is then confirmed by a forward
            in the model's own type, and an example that does not fall there goes on. None: in the model's own type.
        stand_in: Another form of the model, such as a faster one, to search on; falls are confirmed likewise.
        tick: Called after every step.

    Raises:
        InputError: Fewer than one slot or step between looks.
    """
    require(slots >= 1, "a search needs at least 1 slot", slots)
    require(every >= 1, "the steps between looks must be at least 1", every)
    total, first = len(jobs.x), min(len(jobs.x), slots)
    if total == 0:
        return
    net = _Watched(stand_in or model, dtype)
    rounds = search.rounds(jobs.logits.shape[1])
    sizes = batch_sizes(slots, like_of(model, jobs.logits).device.type)
    here = torch.arange(first)  # the job in every slot; -1 in an idle one
    turn = jobs.round.clone()
    following, step = first, 0
    with frozen(model), batch_norm(model, "running"), frozen(net.model), batch_norm(net.model, "running"):
        state = search.begin(_pick(model, jobs, here, turn), threat, streams)
        while len(here):
            search.step(net, state, threat)
            step += 1
            if tick:
                tick()
            if step % every:
                continue
            if dtype is not None or stand_in is not None:
                _confirm(model, net, state)
            fooled, ended = torch.stack([state["fooled"], state["ended"]]).cpu() & (here >= 0)
            again = ended & ~fooled & (turn[here] + 1 < rounds)
            through = ((fooled | ended) & ~again).nonzero().squeeze(1)
            if len(through):
                fell = fooled[through]
                found = state["x_adv"][through[fell].to(state["x"].device)]
                report(Retired(jobs.index[here[through]], fell, found, net.cost()))
            turn[here[again]] += 1
            here[through] = -1
            filled = through[: total - following]
            here[filled] = torch.arange(following, following + len(filled))
            following += len(filled)
            begun = torch.cat([again.nonzero().squeeze(1), filled])
            if len(begun):
                new = search.begin(_pick(model, jobs, here[begun], turn), threat, streams)
                rows = begun.to(state["x"].device)
                state.update({name: state[name].index_copy(0, rows, values) for name, values in new.items()})
            active = int((here >= 0).sum())
            size = min(size for size in sizes if size >= active) if active else 0
            if size < len(here):
                here, state = _shrink(here, state, size)


def most_steps(search: Search, count: int, num_classes: int, *, slots: int = 128, every: int = 1) -> int:
    """How many steps `hunt` makes on `count` examples of which none falls; with falls it makes fewer.

    A fall that is taken back, where the search is in less than the model's precision, may add up to `every` steps.

    Examples:
        >>> from gambeson.attacks import Square
        >>> most_steps(Square(queries=5000), 300, 10, slots=128)
        15003
    """
    course = search.rounds(num_classes) * math.ceil(search.length / every) * every
    return math.ceil(count / slots) * course


def batch_sizes(slots: int, device_type: str = "cuda") -> list[int]:
    """The sizes that a batch of `slots` shrinks through: powers of two, from an eighth on in steps of an eighth.

    On the CPU, where another shape costs nothing and an idle row as much as a busy one, all sizes.

    Examples:
        >>> batch_sizes(64)
        [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    """
    if device_type == "cpu":
        return list(range(1, slots + 1))
    grain = max(1, slots // 8)
    small = [2**k for k in range(grain.bit_length()) if 2**k < grain]
    return [*small, *range(grain, slots, grain), slots]


class _Watched:
    """The model, in another precision if asked for, with a count of the images that pass."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None) -> None:
        self.model, self.dtype = model, dtype
        self.forwards = self.backwards = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x.register_hook(self._passed)
        if self.dtype is None:
            return self.model(x)
        with torch.autocast(x.device.type, self.dtype):
            return self.model(x).to(x.dtype)

    def _passed(self, grad: Tensor) -> None:
        self.backwards += len(grad)

    def cost(self) -> Cost:
        """The images that passed since the last call."""
        found = Cost(self.forwards, self.backwards)
        self.forwards = self.backwards = 0
        return found


def _confirm(model: nn.Module, net: _Watched, state: State) -> None:
    """Take back falls that the model itself, in its own type, does not confirm."""
    rows = state["fooled"].nonzero().squeeze(1)
    if len(rows) == 0:
        return
    with torch.no_grad():
        wrong = model(state["x_adv"][rows]).argmax(1) != state["y"][rows]
    net.forwards += len(rows)
    state["fooled"] = state["fooled"].index_copy(0, rows, wrong)


def _pick(model: nn.Module, jobs: Jobs, rows: Tensor, turn: Tensor) -> Jobs:
    """The jobs of some slots, on the model's device and in its type."""
    from gambeson.data.loader import to_unit

    like = like_of(model, jobs.logits)
    x = to_unit(jobs.x[rows].to(like.device)).to(like.dtype)
    y, logits, index = (t[rows].to(like.device) for t in (jobs.y, jobs.logits, jobs.index))
    return Jobs(x, y, logits, index, turn[rows].to(like.device))


def _shrink(here: Tensor, state: State, size: int) -> tuple[Tensor, State]:
    """Keep all busy slots, and as many idle ones as the size asks for."""
    order = (here < 0).to(torch.int8).argsort(stable=True)[:size]
    rows = order.to(state["x"].device)
    return here[order], {name: values[rows] for name, values in state.items()}


def noise(jobs: Jobs, purpose: str, streams: Streams, draw: Callable[..., Tensor]) -> Tensor:
    """Random numbers of the shape of the images, each image's from a stream of its own.

    Args:
        jobs: The examples; their index and round address the streams.
        purpose: The address besides.
        streams: The randomness.
        draw: `torch.rand` or `torch.randn`.

    Returns:
        `(M, C, H, W)`, of the images' type and on their device. Drawn on the CPU: every device gets the same numbers.
    """
    shape, rows = jobs.x.shape[1:], []
    for index, turn in zip(jobs.index.tolist(), jobs.round.tolist(), strict=True):
        rows.append(draw(shape, generator=streams.at(f"{purpose}/{turn}", index), dtype=jobs.x.dtype))
    return torch.stack(rows).to(jobs.x.device)


def targets_of(jobs: Jobs, restarts: int) -> Tensor:
    """The class that each example's round goes towards, int64 `(M,)`: of the wrong ones the nearest first.

    Args:
        jobs: The examples; their clean logits say what is near.
        restarts: Rounds per target.
    """
    order = jobs.logits.scatter(1, jobs.y[:, None], torch.inf).argsort(1, descending=True)
    return order.gather(1, 1 + jobs.round[:, None] // restarts).squeeze(1)


def select(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` in the rows where the condition `(N,)` holds, `b` elsewhere."""
    return torch.where(per_image(condition, a) if a.ndim > 1 else condition, a, b)


@dataclass(frozen=True)
class Hunt:
    """A search as an attack on a batch: every example to its end, those that are wrong without attack left alone.

    Args:
        search: The search.
        slots: Examples at a time.
    """

    search: Search
    slots: int = 128

    def __call__(self, model: nn.Module, batch: Batch, threat: Threat, rng: Generator) -> Tensor:
        """Adversarial images where the search found some, the clean ones elsewhere, detached."""
        with torch.no_grad(), batch_norm(model, "running"):
            logits = model(batch.x)
        x_adv = batch.x.detach().clone()
        left = (logits.argmax(1) == batch.y).nonzero().squeeze(1).cpu()
        x, y, known = (t.cpu() for t in (batch.x, batch.y, logits))
        seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))

        def keep(retired: Retired) -> None:
            x_adv[retired.index[retired.fooled].to(x_adv.device)] = retired.x_adv

        jobs = Jobs(x[left], y[left], known[left], left, torch.zeros_like(left))
        hunt(model, self.search, jobs, threat, Streams(seed), keep, slots=self.slots)
        return x_adv
