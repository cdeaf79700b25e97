from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gambeson.core.streams import Streams
from gambeson.data.loader import Loader, to_unit
from gambeson.data.placement import draw_placement, place
from gambeson.data.splits import Examples

Data = Callable[..., Examples]
FILLS = st.sampled_from(["zero", "reflect"])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(kind: str, seed: int, n: int = 5, channels: int = 2, h: int = 4, w: int = 6) -> Tensor:
    x = torch.randint(1, 256, (n, channels, h, w), generator=rng(seed), dtype=torch.uint8)
    return {"bytes": x, "floats": to_unit(x), "doubles": x.double() / 7, "mask": x > 100}[kind]


def by_hand(x: Tensor, placement: Tensor, fill: str) -> Tensor:
    """Pad, cut out, mirror: one image at a time, from a padded copy."""
    n, _, h, w = x.shape
    pad = max(1, int(placement[:, :2].abs().max()))
    out = []
    for i in range(n):
        dy, dx, mirrored = placement[i].tolist()
        image = x[i].double()[None]
        if fill == "reflect":
            image = torch.nn.functional.pad(image, (pad,) * 4, mode="reflect")
        else:
            image = torch.nn.functional.pad(image, (pad,) * 4)
        cut = image[0, :, pad + dy : pad + dy + h, pad + dx : pad + dx + w]
        out.append(cut.flip(2) if mirrored else cut)
    return torch.stack(out).to(x.dtype)


@given(
    st.sampled_from(["bytes", "floats", "doubles", "mask"]),
    st.integers(0, 2**32),
    st.integers(0, 3),
    st.booleans(),
    FILLS,
)
def test_placing_is_padding_cutting_and_mirroring(kind: str, seed: int, pad: int, flip: bool, fill: Any) -> None:
    x = values(kind, seed)
    placement = draw_placement(len(x), rng(seed), pad=pad, flip=flip)
    found = place(x, placement, fill)
    assert found.dtype == x.dtype
    assert torch.equal(found, by_hand(x, placement, fill))


@given(st.integers(0, 2**32), st.integers(0, 5), st.booleans(), FILLS)
def test_a_mask_placed_is_the_mask_of_the_placed_image(seed: int, pad: int, flip: bool, fill: Any) -> None:
    """With the fill of the images, for a rule that looks at pixels; zero padding is below the threshold."""
    x = values("bytes", seed, h=6)
    placement = draw_placement(len(x), rng(seed), pad=pad, flip=flip)
    assert torch.equal(place(x > 100, placement, fill), place(x, placement, fill) > 100)


def test_a_shift_and_a_mirror_of_known_pixels() -> None:
    x = torch.arange(1.0, 7.0).view(1, 1, 2, 3)
    shown = {
        (0, 0, 0): [[1, 2, 3], [4, 5, 6]],
        (1, 0, 0): [[4, 5, 6], [0, 0, 0]],
        (0, -1, 0): [[0, 1, 2], [0, 4, 5]],
        (0, 0, 1): [[3, 2, 1], [6, 5, 4]],
        (0, -1, 1): [[2, 1, 0], [5, 4, 0]],  # the window moves in the image, then it is mirrored
        (2, 0, 0): [[0, 0, 0], [0, 0, 0]],
    }
    for placement, expected in shown.items():
        assert place(x, torch.tensor([placement])).view(2, 3).tolist() == expected
    reflected = place(x, torch.tensor([[-1, 1, 0]]), "reflect")
    assert reflected.view(2, 3).tolist() == [[5, 6, 5], [2, 3, 2]]


def test_placements_are_shifts_within_the_padding_and_a_fair_coin() -> None:
    placement = draw_placement(3000, rng(), pad=2, flip=True)
    assert placement.shape == (3000, 3)
    assert placement.dtype == torch.int64
    for column in range(2):
        assert placement[:, column].unique().tolist() == [-2, -1, 0, 1, 2]
        assert (placement[:, column] + 2).bincount().min() > 500
    assert 1350 < int(placement[:, 2].sum()) < 1650
    assert placement[:, 2].unique().tolist() == [0, 1]
    pairs = placement[:, 0] * 5 + placement[:, 1]
    assert len(pairs.unique()) == 25  # rows and columns are independent


def test_draws_do_not_depend_on_the_settings() -> None:
    with_all = draw_placement(50, rng(3), pad=4, flip=True)
    assert torch.equal(draw_placement(50, rng(3), pad=4, flip=False), with_all * torch.tensor([1, 1, 0]))
    without = draw_placement(50, rng(3), pad=0, flip=True)
    assert torch.equal(without, with_all * torch.tensor([0, 0, 1]))
    assert with_all[:, 2].any()
    assert not draw_placement(50, rng(3), pad=0, flip=False).any()
    assert not torch.equal(draw_placement(50, rng(4), pad=4, flip=True), with_all)


def test_the_input_is_not_written_to() -> None:
    x = values("floats", 0)
    before = x.clone()
    for placement in (torch.zeros(5, 3, dtype=torch.int64), draw_placement(5, rng(), pad=2, flip=True)):
        place(x, placement).zero_()
    assert torch.equal(x, before)


@pytest.mark.parametrize("fill", ["zero", "reflect"])
@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (0, True)])
def test_a_batch_says_how_its_images_were_placed(pad: int, flip: bool, fill: Any, tiny_examples: Data) -> None:
    data = tiny_examples()
    loader = Loader(data, 7, Streams(1), pad=pad, flip=flip, fill=fill)
    for step in range(8):
        batch = loader.batch(step)
        assert batch.placement is not None
        assert torch.equal(batch.x, to_unit(by_hand(data.x[batch.index], batch.placement, fill)))
    assert batch.placement.any()


def test_images_as_they_are_have_no_placement(tiny_examples: Data) -> None:
    data = tiny_examples()
    assert Loader(data, 7, Streams(1)).batch(3).placement is None
    index = torch.tensor([4, 2, 9])
    x, placement = Loader(data, 7, Streams(1), pad=2, flip=True).view(index)
    assert placement is None
    assert torch.equal(x, to_unit(data.x[index]))
