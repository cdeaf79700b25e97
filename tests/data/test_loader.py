import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gambeson.core.errors import InputError
from gambeson.core.streams import Streams
from gambeson.data.catalog import load
from gambeson.data.folder import Stream
from gambeson.data.loader import Loader, augment, to_unit
from gambeson.data.splits import Examples

Data = Callable[..., Examples]


def images(seed: int, n: int = 4, channels: int = 2, h: int = 4, w: int = 5) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, h, w), generator=rng, dtype=torch.uint8)


def slow(x: Tensor, seed: int, *, pad: int, flip: bool, fill: str) -> Tensor:
    """Pad, crop, mirror, one value at a time, with the draws of `augment`."""
    n, channels, h, w = x.shape
    rng = torch.Generator().manual_seed(seed)
    shift = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=rng)
    mirrored = torch.rand(n, 1, generator=rng) < 0.5
    out = torch.zeros(x.shape)

    def reflect(i: int, size: int) -> int:
        i = abs(i)
        return 2 * (size - 1) - i if i >= size else i

    for i in range(n):
        for c in range(channels):
            for row in range(h):
                for column in range(w):
                    source = w - 1 - column if flip and bool(mirrored[i]) else column
                    r, k = row + int(shift[0, i]) - pad, source + int(shift[1, i]) - pad
                    if fill == "reflect":
                        r, k = reflect(r, h), reflect(k, w)
                    if 0 <= r < h and 0 <= k < w:
                        out[i, c, row, column] = float(x[i, c, r, k]) / 255
    return out


@given(st.integers(0, 2**32), st.integers(0, 3), st.booleans(), st.sampled_from(["zero", "reflect"]))
def test_augmentation_is_the_slow_one(seed: int, pad: int, flip: bool, fill: str) -> None:
    x = images(seed)
    found = augment(x, torch.Generator().manual_seed(seed), pad=pad, flip=flip, fill=fill)  # type: ignore[arg-type]
    torch.testing.assert_close(found, slow(x, seed, pad=pad, flip=flip, fill=fill), rtol=0, atol=1e-7)
    assert found.dtype == torch.float32
    assert found.min() >= 0
    assert found.max() <= 1


@given(st.integers(0, 2**32))
def test_without_augmentation_the_images_are_divided_by_255_exactly(seed: int) -> None:
    x = images(seed)
    found = augment(x, torch.Generator().manual_seed(seed), pad=0, flip=False)
    expected = (x.numpy().astype("float32") / 255).tolist()
    assert found.tolist() == expected
    assert torch.equal(to_unit(x), found)


def test_floats_are_augmented_as_bytes_are() -> None:
    x = images(0)
    a, b = (augment(t, torch.Generator().manual_seed(1), pad=2, flip=True) for t in (x, to_unit(x)))
    assert torch.equal(a, b)


def test_every_shift_and_both_sides_occur() -> None:
    x = torch.zeros(400, 1, 5, 5, dtype=torch.uint8)
    x[:, :, 2, 2] = 255
    found = augment(x, torch.Generator().manual_seed(0), pad=2, flip=False)
    places = {tuple(p) for p in found.nonzero()[:, 2:].tolist()}
    assert places == {(r, c) for r in range(5) for c in range(5)}
    x = torch.zeros(400, 1, 1, 2, dtype=torch.uint8)
    x[..., 0] = 255
    mirrored = augment(x, torch.Generator().manual_seed(0), pad=0, flip=True)[..., 1].sum()
    assert 150 < mirrored < 250


def test_the_images_are_not_written_to() -> None:
    x = images(0)
    before = x.clone()
    for pad, flip in ((0, False), (0, True), (2, True)):
        augment(x, torch.Generator(), pad=pad, flip=flip).zero_()
    assert torch.equal(x, before)


@given(st.integers(1, 24), st.integers(0, 2**32))
def test_every_epoch_is_a_permutation_with_a_smaller_last_batch(tiny_examples: Data, size: int, seed: int) -> None:
    data = tiny_examples()
    loader = Loader(data, size, Streams(seed))
    assert loader.steps_per_epoch == -(-24 // size)
    orders = []
    for epoch in range(3):
        batches = [loader.batch(epoch * loader.steps_per_epoch + k) for k in range(loader.steps_per_epoch)]
        assert [len(b.y) for b in batches] == [size] * (24 // size) + ([24 % size] if 24 % size else [])
        index = torch.cat([b.index for b in batches])
        assert sorted(index.tolist()) == list(range(24))
        assert torch.equal(torch.cat([b.y for b in batches]), data.y[index])
        assert torch.equal(torch.cat([b.x for b in batches]), to_unit(data.x[index]))
        orders.append(tuple(index.tolist()))
    assert len(set(orders)) == 3


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_depends_on_its_number_alone(tiny_examples: Data, steps: list[int]) -> None:
    def loader() -> Loader:
        return Loader(tiny_examples(), 5, Streams(3), pad=2, flip=True)

    jumping = loader()
    for step in steps:
        torch.manual_seed(step)
        for a, b in zip(jumping.batch(step)[:4], loader().batch(step)[:4], strict=True):
            assert torch.equal(a, b)


def test_order_and_augmentation_are_addressed(tiny_examples: Data) -> None:
    data, streams = tiny_examples(), Streams(7)
    loader = Loader(data, 10, streams, pad=2, flip=True, fill="reflect")
    batch = loader.batch(5)  # the last of the second epoch
    order = torch.randperm(24, generator=streams.at("shuffle", 1))
    assert batch.index.tolist() == order[20:].tolist()
    expected = augment(data.x[order[20:]], streams.at("augment", 5), pad=2, flip=True, fill="reflect")
    assert torch.equal(batch.x, expected)
    assert not torch.equal(loader.batch(2).x, batch.x)


def test_the_same_images_are_augmented_differently_in_every_epoch(tiny_examples: Data) -> None:
    loader = Loader(tiny_examples(), 24, Streams(0), pad=2)
    a, b = (loader.batch(step) for step in (0, 1))
    assert not torch.equal(a.x[a.index.argsort()], b.x[b.index.argsort()])


def test_the_draws_are_made_on_the_cpu_whatever_the_device(tiny_examples: Data) -> None:
    """On the meta device only what is drawn or computed elsewhere has values: the generators must be the CPU's."""
    loader = Loader(tiny_examples(), 5, Streams(0), pad=2, flip=True, device="meta")
    batch = loader.batch(0)
    assert batch.x.device.type == batch.y.device.type == batch.index.device.type == "meta"
    assert batch.x.shape == (5, 1, 8, 8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batches_have_the_layout_that_is_asked_for(layout: torch.memory_format) -> None:
    data = Examples(images(0, 8, 3, 6, 6), torch.zeros(8, dtype=torch.int64))
    for pad, flip in ((0, False), (2, True)):
        loader = Loader(data, 4, Streams(0), pad=pad, flip=flip, layout=layout)
        assert loader.batch(0).x.is_contiguous(memory_format=layout)
        assert torch.equal(loader.batch(0).x, Loader(data, 4, Streams(0), pad=pad, flip=flip).batch(0).x)


def test_batch_sizes_that_do_not_fit_are_refused(tiny_examples: Data) -> None:
    for size in (0, -1, 25):
        with pytest.raises(InputError, match=f"between 1 and the 24 training images, got {size}") as error:
            Loader(tiny_examples(), size, Streams(0))
        assert error.value.hint == "use --batch-size 24 or less"


def test_paddings_that_do_not_fit_are_refused(tiny_examples: Data) -> None:
    for pad, fill in ((-1, "zero"), (8, "reflect")):
        with pytest.raises(InputError, match=f"padding of {pad} pixels does not fit images of 8 pixels"):
            Loader(tiny_examples(), 4, Streams(0), pad=pad, fill=fill)  # type: ignore[arg-type]
    for pad, fill in ((8, "zero"), (7, "reflect")):
        Loader(tiny_examples(), 4, Streams(0), pad=pad, fill=fill).batch(0)  # type: ignore[arg-type]


def test_an_unknown_fill_is_refused(tiny_examples: Data) -> None:
    with pytest.raises(InputError):
        Loader(tiny_examples(), 4, Streams(0), pad=2, fill="edge")  # type: ignore[arg-type]


@given(st.integers(0, 40), st.integers(1, 4))
def test_processes_share_the_batch_of_one(tiny_examples: Data, step: int, world: int) -> None:
    def loader(rank: int, world: int) -> Loader:
        return Loader(tiny_examples(), 5, Streams(3), pad=2, flip=True, rank=rank, world=world)

    whole = loader(0, 1).batch(step)
    parts = [loader(rank, world).batch(step) for rank in range(world)]
    for name in ("x", "y", "index", "placement"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert whole.share is None
    if world > 1:
        assert [part.share for part in parts] == [len(part.y) / len(whole.y) for part in parts]


def test_every_process_needs_an_image(tiny_examples: Data) -> None:
    with pytest.raises(InputError, match="3 processes cannot share a batch of 1 images") as error:
        Loader(tiny_examples(25), 6, Streams(0), world=3)
    assert "--batch-size" in str(error.value.hint)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_streamed_batches_are_those_of_the_memory_to_the_bit(photos: Path, workers: int, fill: str) -> None:
    eager, lazy = (
        Loader(
            load(
                f"folder:{photos}", size=8, val_fraction=0, stream=how, workers=workers if how == "on" else None
            ).train,
            5,
            Streams(3),
            pad=2,
            flip=True,
            fill=fill,  # type: ignore[arg-type]
            layout=torch.channels_last,
        )
        for how in ("off", "on")
    )
    with lazy.serving():
        for step in (0, 1, 2, 3, 4, 5, 6, 12, 13, 3):  # over the end of an epoch, ahead and back
            for a, b in zip(eager.batch(step)[:4], lazy.batch(step)[:4], strict=True):
                assert torch.equal(a, b)
            assert lazy.batch(step).x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(eager.view(torch.tensor([4, 2]))[0], lazy.view(torch.tensor([4, 2]))[0])
    rng = Streams(0)
    for a, b in zip(*(one.walk(lambda k: rng.at("walk", k)) for one in (eager, lazy)), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])  # type: ignore[arg-type]


def test_a_walk_is_the_views_of_all_images(tiny_examples: Data) -> None:
    loader, streams = Loader(tiny_examples(), 10, Streams(0), pad=2, flip=True), Streams(1)
    parts = torch.arange(24).split(10)
    assert torch.equal(torch.cat([x for x, _ in loader.walk()]), loader.view(torch.arange(24))[0])
    for number, (x, placement) in enumerate(loader.walk(lambda k: streams.at("walk", k))):
        expected = loader.view(parts[number], streams.at("walk", number))
        assert torch.equal(x, expected[0])
        assert torch.equal(placement, expected[1])  # type: ignore[arg-type]


def test_an_order_is_drawn_once_although_batches_are_decoded_ahead(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    loader = Loader(load(f"folder:{photos}", size=8, val_fraction=0, stream="on", workers=1).train, 5, Streams(0))
    real = loader.streams.at
    monkeypatch.setattr(
        Streams, "at", lambda self, purpose, *where: drawn.append((purpose, *where)) or real(purpose, *where)
    )
    with loader.serving():
        for step in range(3 * loader.steps_per_epoch):
            loader.batch(step)
    assert [number for purpose, number in drawn if purpose == "shuffle"][:3] == [0, 1, 2]
    assert len([1 for purpose, _ in drawn if purpose == "shuffle"]) <= 4


def test_leaving_the_loader_ends_its_processes(photos: Path) -> None:
    loader = Loader(load(f"folder:{photos}", size=8, val_fraction=0, stream="on", workers=2).train, 5, Streams(0))
    with loader.serving():
        loader.batch(0)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()

    def fail() -> None:
        with loader.serving():
            loader.batch(1)
            raise InputError("something else is wrong")

    with pytest.raises(InputError):
        fail()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("how", ["off", "on"])
def test_processes_walk_over_all_images_once(photos: Path, how: Stream) -> None:
    train = load(f"folder:{photos}", size=8, val_fraction=0, stream=how, workers=0 if how == "on" else None).train

    def loader(rank: int, world: int) -> Loader:
        return Loader(train, 5, Streams(3), pad=2, flip=True, rank=rank, world=world)

    streams = Streams(1)
    found = [x for rank in range(3) for x, _ in loader(rank, 3).walk(lambda k: streams.at("walk", k))]
    whole = [x for x, _ in loader(0, 1).walk(lambda k: streams.at("walk", k))]
    assert torch.equal(torch.cat(found), torch.cat(whole))
    for step in (0, 3):
        parts = [loader(rank, 2).batch(step) for rank in range(2)]
        assert torch.equal(torch.cat([part.x for part in parts]), loader(0, 1).batch(step).x)
