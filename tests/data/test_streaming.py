import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gambeson.core.errors import DataError
from gambeson.data import stored
from gambeson.data.folder import read_folder
from gambeson.data.stored import StoredImages
from gambeson.data.streaming import Feed, chunks, closed_on_error


def lazy(path: Path, workers: int) -> StoredImages:
    x = read_folder(path, size=8, stream="on", workers=workers).train.x
    assert isinstance(x, StoredImages)
    return x


def four(number: int) -> torch.Tensor:
    """Four rows for a batch, another four for each of six batches, and over again."""
    return torch.arange(4) + 4 * (number % 6)


def processes() -> list[int]:
    """The worker processes that are there after a moment to end."""
    for _ in range(600):
        found = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        if not found:
            break
        time.sleep(0.05)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert not processes()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_that_were_asked_for_in_any_order(workers: int, photos: Path) -> None:
    x = lazy(photos, workers)
    pixels, feed = x[:], Feed(x, four)
    for number in (0, 1, 2, 7, 8, 3, 3, 4, 5, 6, 100, 101):
        assert torch.equal(feed.batch(number), pixels[four(number)])
    feed.close()
    assert torch.equal(feed.batch(2), pixels[four(2)])  # it may be opened again
    feed.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generator_is_left_alone(workers: int, photos: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    feed = Feed(lazy(photos, workers), four)
    for number in (0, 1, 5):
        feed.batch(number)
    feed.close()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_comes_before_a_batch_is_not_decoded(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, decoded = lazy(photos, 0), []
    real = stored.decode

    def spy(tree, names, *args, **settings):  # type: ignore[no-untyped-def]
        decoded.extend(names)
        return real(tree, names, *args, **settings)

    monkeypatch.setattr(stored, "decode", spy)
    Feed(x, four).batch(4)
    assert decoded == [x.names[int(row)] for row in x.rows[four(4)]]


def test_workers_stay_from_batch_to_batch_and_over_jumps(photos: Path) -> None:
    feed = Feed(lazy(photos, 2), four)
    seen = set()
    for number in (0, 1, 2, 9, 10, 4):
        feed.batch(number)
        seen |= {child.pid for child in multiprocessing.active_children()}
    assert len(seen) == 2
    feed.close()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_an_image_that_cannot_be_decoded_is_named_when_its_batch_comes(
    harm: str, workers: int, tmp_path: Path, write_photos: Callable[..., Path]
) -> None:
    x = lazy(write_photos(tmp_path), workers)
    file = tmp_path / x.names[int(x.rows[9])]
    file.write_bytes(b"cut") if harm == "damaged" else file.unlink()
    feed = Feed(x, four)
    feed.batch(0)
    feed.batch(1)
    with pytest.raises(DataError, match="cannot be decoded") as error:
        feed.batch(2)
    assert str(file) in error.value.message
    assert error.value.hint == "remove or replace this image, or copy the data set again"
    assert not processes()
    assert len(feed.batch(3)) == 4  # what follows is still there
    feed.close()


def test_a_worker_that_dies_is_an_error_with_advice(photos: Path) -> None:
    feed = Feed(lazy(photos, 2), four)

    def kill_one() -> None:
        with closed_on_error(feed):  # the news may come anywhere
            feed.batch(0)
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            for number in range(1, 1000):
                feed.batch(number)

    with pytest.raises(DataError, match="a process that decodes images has died") as error:
        kill_one()
    assert "--workers 0" in str(error.value.hint)
    assert not processes()


@pytest.mark.parametrize("fault", [EOFError(), ConnectionRefusedError("111")])
def test_a_worker_that_dies_in_the_middle_of_a_batch_is_the_same_error(
    photos: Path, fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise fault

    feed = Feed(lazy(photos, 1), four)
    feed.batch(0)
    monkeypatch.setattr(type(feed._batches), "_next_data", broken)
    with pytest.raises(DataError, match="a process that decodes images has died"):
        feed.batch(1)
    assert not processes()


def test_signals_to_the_whole_group_do_not_end_workers(photos: Path) -> None:
    x = lazy(photos, 2)
    feed = Feed(x, four)
    feed.batch(0)
    for number, which in enumerate((signal.SIGINT, signal.SIGTERM), start=1):
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, which)
        assert torch.equal(feed.batch(number), x[four(number)])
    for number in range(3, 12):
        feed.batch(number)
    feed.close()


def test_an_error_between_batches_ends_the_workers(photos: Path) -> None:
    feed = Feed(lazy(photos, 1), four)

    def interrupted() -> None:
        with closed_on_error(feed):
            feed.batch(0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not processes()


def test_workers_end_with_the_last_reference(photos: Path) -> None:
    feed = Feed(lazy(photos, 1), four)
    feed.batch(0)
    del feed
    assert not processes()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [1, 7, 24, 99])
def test_chunks_are_all_images_in_their_order(size: int, workers: int, photos: Path) -> None:
    x = lazy(photos, workers)
    parts = list(chunks(x, size))
    assert [len(part) for part in parts] == [len(part) for part in x[:].split(size)]
    assert torch.equal(torch.cat(parts), x[:])


def test_chunks_of_a_tensor_are_its_parts() -> None:
    x = torch.rand(5, 1, 2, 2)
    assert [part.data_ptr() for part in chunks(x, 2)] == [x[k:].data_ptr() for k in (0, 2, 4)]


def test_chunks_that_are_given_up_leave_no_process(photos: Path) -> None:
    parts = chunks(lazy(photos, 2), 4)
    next(parts)
    del parts
    assert not processes()


def test_no_images_are_no_chunks_of_images(photos: Path) -> None:
    x = lazy(photos, 0)
    assert sum(len(part) for part in chunks(replace(x, rows=x.rows[:0]), 4)) == 0
