import hashlib

import torch
from hypothesis import given
from hypothesis import strategies as st

from gambeson.core.streams import Streams

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
