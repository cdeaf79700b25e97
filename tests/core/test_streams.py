import hashlib

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gambeson.core.streams import Streams, uniform

purposes = st.sampled_from(["attack", "augment", "a/1"])
addresses = st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 1000), purposes, st.integers(0, 99))


@given(addresses)
def test_the_same_address_gives_the_same_numbers(address: tuple[int, int, str, int]) -> None:
    seed, rank, purpose, step = address
    streams = Streams(seed, rank)
    first = torch.rand(5, generator=streams.at(purpose, step))
    streams.at(purpose, step + 1)
    assert torch.equal(first, torch.rand(5, generator=Streams(seed, rank).at(purpose, step)))
    assert 0 <= streams.number(purpose, step) < 2**63


@given(addresses, addresses)
def test_different_addresses_give_different_numbers(a: tuple[int, int, str, int], b: tuple[int, int, str, int]) -> None:
    number = {x: Streams(x[0], x[1]).number(x[2], x[3]) for x in (a, b)}
    assert len(set(number.values())) == len({a, b})


def test_seed_rank_purpose_and_step_each_change_the_numbers() -> None:
    numbers = {
        Streams(0, 0).number("attack", 0),
        Streams(1, 0).number("attack", 0),
        Streams(0, 1).number("attack", 0),
        Streams(0, 0).number("augment", 0),
        Streams(0, 0).number("attack", 1),
    }
    assert len(numbers) == 5


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = torch.rand(3, generator=Streams(0).at("attack"))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(3, generator=Streams(0).at("attack")))


def test_the_numbers_of_an_address_never_change_between_versions() -> None:
    assert Streams(0).number("attack", 7) == _reference(0, 0, "attack", 7)


def _reference(seed: int, rank: int, purpose: str, step: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{rank}/{purpose}/{step}".encode(), digest_size=8).hexdigest()
    return int(digest, 16) // 2


def splitmix64(seed: int, count: int) -> list[int]:
    """Vigna's generator in Python's integers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) % 2**64
        z = seed
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        out.append(z ^ (z >> 31))
    return out


def signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def test_the_plain_generator_is_the_published_one() -> None:
    """The outputs for seed 1234567 are those that implementations of SplitMix64 are checked with."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert splitmix64(1234567, 4) == published


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.integers(0, 50))
def test_a_row_is_a_sequence_of_splitmix64(keys: list[int], step: int) -> None:
    drawn = uniform(torch.tensor(keys), torch.full((len(keys),), step), 7)
    assert drawn.dtype == torch.float32
    for key, row in zip(keys, drawn.tolist(), strict=True):
        seed = splitmix64(key % 2**64, step + 1)[step]
        assert row == [(bits >> 40) / 2**24 for bits in splitmix64(seed, 7)]


def test_keys_follow_the_address_part_by_part() -> None:
    streams, index, turn = Streams(4), torch.tensor([0, 2, 9]), torch.tensor([0, 3, 1])
    for row, (i, t) in enumerate(zip(index.tolist(), turn.tolist(), strict=True)):
        key = splitmix64(splitmix64(streams.number("square"), i + 1)[i], t + 1)[t]
        assert int(streams.keys("square", index, turn)[row]) == signed(key)


def test_the_numbers_of_a_row_never_change_between_versions() -> None:
    drawn = uniform(Streams(0).keys("square", torch.tensor([0, 7])), torch.tensor([0, 3]), 3)
    assert (drawn * 2**24).long().tolist() == [[11096898, 13611995, 5317903], [11244060, 9736013, 11715975]]


@given(st.permutations(range(6)), st.integers(1, 6), st.integers(0, 2**40))
def test_a_row_does_not_depend_on_the_rows_beside_it(order: list[int], count: int, seed: int) -> None:
    index, step = torch.arange(6) * 1000, torch.tensor([0, 5, 0, 2, 4999, 1])
    rows = torch.tensor(order[:count])
    drawn = uniform(Streams(seed).keys("square", index), step, 4)
    alone = uniform(Streams(seed).keys("square", index[rows]), step[rows], 4)
    assert torch.equal(alone, drawn[rows])
    assert torch.equal(uniform(Streams(seed).keys("square", index), step, 2), drawn[:, :2])


@pytest.fixture(scope="module")
def grid() -> Tensor:
    """Numbers by index, step and lane, `(120, 60, 24)`."""
    keys = Streams(0).keys("square", torch.arange(120), torch.zeros(120, dtype=torch.int64))
    return torch.stack([uniform(keys, torch.full((120,), step), 24) for step in range(60)], 1).double()


def test_the_numbers_of_rows_are_uniform(grid: Tensor) -> None:
    assert 0 <= grid.min() < 1e-4
    assert 1 - 1e-4 < grid.max() < 1
    assert scipy.stats.kstest(grid.flatten().numpy(), "uniform").pvalue > 0.01
    for axis in range(3):  # also for every index, step and lane
        rows = grid.movedim(axis, 0).flatten(1)
        counts = torch.stack([(rows * 16).long().eq(k).sum(1) for k in range(16)], 1).double()
        expected = rows.shape[1] / 16
        chi = (counts - expected).square().sum(1) / expected
        p = torch.from_numpy(scipy.stats.chi2.sf(chi.numpy(), 15))
        assert p.min() > 0.01 / len(p)
        assert scipy.stats.kstest(p.numpy(), "uniform").pvalue > 0.001
    low = (grid * 2**24).long() % 16  # the lowest bits are random too
    assert scipy.stats.chisquare(low.flatten().bincount().numpy()).pvalue > 0.01


def test_neighbouring_numbers_of_rows_are_independent(grid: Tensor) -> None:
    for axis in range(3):
        size = grid.shape[axis]
        for lag in (1, 2, 16):
            a, b = grid.narrow(axis, 0, size - lag).flatten(), grid.narrow(axis, lag, size - lag).flatten()
            assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 3.5 / len(a) ** 0.5, (axis, lag)
            pairs = ((a * 8).long() * 8 + (b * 8).long()).bincount(minlength=64)
            assert scipy.stats.chisquare(pairs.numpy()).pvalue > 0.001, (axis, lag)


def test_seed_purpose_and_every_part_of_the_address_change_all_lanes_of_a_row() -> None:
    zero, one = torch.tensor([0]), torch.tensor([1])
    keys = [
        Streams(0).keys("square", zero, zero),
        Streams(1).keys("square", zero, zero),
        Streams(0, 1).keys("square", zero, zero),
        Streams(0).keys("other", zero, zero),
        Streams(0).keys("square", one, zero),
        Streams(0).keys("square", zero, one),
        Streams(0).keys("square", zero),
    ]
    drawn = torch.cat([uniform(key, step, 50) for key in keys for step in (zero, one)])
    for lane in drawn.T:
        assert len(lane.unique()) == 14
