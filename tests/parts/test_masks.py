import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from gambeson.core.errors import FileError, InputError
from gambeson.parts import Jet, MaskFile, Quadrant, Quantile, Random, ZScore, create_mask
from gambeson.parts.cam import normalised
from gambeson.parts.masks import bicubic_matrix, jet_table, upsample

Array = Any


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def relu_gauss(n: int, size: int, seed: int = 0) -> Tensor:
    """Maps as a ReLU leaves them, none of them dead."""
    maps = torch.randn(n, size, size, generator=rng(seed)).relu()
    return maps[maps.amax((1, 2)) > maps.amin((1, 2))]


def released(cam: Tensor, size: int) -> tuple[Array, Array]:
    """PART's release, for one map: min-max, pillow, jet of the square, z-score over all values, clamp, above 1.

    Returns:
        The mask `(3, size, size)` and the up-sampled map.
    """
    cam = cam - cam.min()
    image = Image.fromarray((cam / cam.max()).numpy())  # mode F
    u = np.asarray(image.resize((size, size), resample=Image.Resampling.BICUBIC))
    rgb = colormaps["jet"](u**2)[:, :, :3]
    weight = np.clip((rgb - rgb.mean()) / rgb.std(), 1, None)
    return (weight > 1).transpose(2, 0, 1), u


def jet_masks(maps: Tensor, size: int) -> Tensor:
    return Jet()(upsample(normalised(maps)[0], (size, size)))


# --- the release's chain -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [(4, 32), (8, 32), (8, 64)])
def test_the_jet_masks_are_those_of_pillow_matplotlib_and_numpy(source: int, target: int) -> None:
    maps = relu_gauss(320, source, seed=source + target)
    up = upsample(normalised(maps)[0], (target, target))
    masks = Jet()(up)
    assert masks.dtype == torch.bool
    assert masks.shape == (len(maps), 3, target, target)
    different, farthest = 0, 0.0
    for i in range(len(maps)):
        mask, u = released(maps[i], target)
        different += int((masks[i].numpy() != mask).sum())
        farthest = max(farthest, float(np.abs(up[i].numpy() - u).max()))
    assert len(maps) >= 300
    assert farthest < 1e-6
    assert different <= 1e-4 * masks.numel()


def test_bicubic_interpolation_without_antialiasing_is_another_one() -> None:
    """The comparison above can fail: torch's plain bicubic kernel has another parameter."""
    maps = normalised(relu_gauss(50, 4))[0]
    plain = F.interpolate(maps[:, None], (32, 32), mode="bicubic", align_corners=False, antialias=False)[:, 0]
    assert max(float(np.abs(plain[i].numpy() - released(maps[i], 32)[1]).max()) for i in range(50)) > 1e-2
    assert (plain - upsample(maps, (32, 32))).abs().max() > 1e-2


@pytest.mark.parametrize("shape", [(4, 4), (2, 3), (1, 1), (7, 5), (2, 2)])
def test_maps_of_any_shape_are_enlarged_as_pillow_does_it(shape: tuple[int, int]) -> None:
    maps = torch.rand(3, *shape, generator=rng(1))
    up = upsample(maps, (12, 20))
    assert up.shape == (3, 12, 20)
    for i in range(3):
        image = Image.fromarray(maps[i].numpy()).resize((20, 12), resample=Image.Resampling.BICUBIC)
        np.testing.assert_allclose(up[i].numpy(), np.asarray(image), rtol=0, atol=1e-6)
    rows = bicubic_matrix(shape[0], 12)
    assert rows.shape == (12, shape[0])
    torch.testing.assert_close(rows.sum(1), torch.ones(12, dtype=torch.float64))
    assert not rows.requires_grad


def test_the_colours_are_matplotlibs() -> None:
    table = jet_table()
    assert table.shape == (256, 3)
    assert table.dtype == torch.float64
    for i in (0, 31, 128, 255):
        assert table[i].tolist() == list(colormaps["jet"](i)[:3])


def test_the_jet_mask_is_a_band_of_each_channel_and_leaves_the_peak_out() -> None:
    """Blue on low values, red on high ones, the peak (dark red) in none of them."""
    maps = relu_gauss(600, 4, seed=5)
    up = upsample(normalised(maps)[0], (32, 32))
    masks = Jet()(up)
    assert not masks.all(1).any()
    shares = masks.float().mean((0, 2, 3))
    torch.testing.assert_close(shares, torch.tensor([0.05, 0.11, 0.38]), rtol=0, atol=0.03)
    peak = up.flatten(1).argmax(1)
    at_peak = masks.flatten(2).gather(2, peak.view(-1, 1, 1).expand(-1, 3, 1)).squeeze(2)
    assert at_peak.any(1).float().mean() < 0.12
    assert not at_peak[:, 1:].any()
    zscore_at_peak = ZScore()(up).flatten(1).gather(1, peak[:, None])
    assert zscore_at_peak.all()  # the paper's rule is the other way round
    values = [up.square()[masks[:, c]].mean().item() for c in range(3)]
    assert values[0] > values[1] > values[2]


# --- the other rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1.7])
def test_the_zscore_mask_is_numpys(threshold: float) -> None:
    u = upsample(normalised(relu_gauss(40, 4))[0], (16, 16)).double()
    masks = ZScore(threshold)(u)
    assert masks.shape == (40, 1, 16, 16)
    for i in range(40):
        v = u[i].numpy() ** 2
        assert np.array_equal(masks[i, 0].numpy(), (v - v.mean()) / v.std() > threshold)
    assert 0.02 < masks.float().mean() < 0.6


@given(st.integers(0, 2**32), st.floats(0, 0.99))
def test_a_quantile_keeps_the_same_share_of_every_image(seed: int, q: float) -> None:
    u = torch.rand(4, 10, 10, generator=rng(seed))
    mask = Quantile(q)(u)
    assert mask.shape == (4, 1, 10, 10)
    assert ((mask.float().mean((1, 2, 3)) - (1 - q)).abs() <= 0.0100001).all()
    for i in range(4):
        assert u[i][mask[i, 0]].min() > u[i][~mask[i, 0]].max()


def test_a_random_mask_keeps_its_share_and_comes_from_its_generator() -> None:
    x = torch.zeros(40, 3, 16, 16)
    masks = Random(0.3)(x, rng(1))
    assert masks.shape == (40, 1, 16, 16)
    assert masks.dtype == torch.bool
    assert abs(masks.float().mean() - 0.3) < 0.02  # ten thousand pixels: a standard deviation of 0.0046
    assert abs(masks.float().mean(0).mean(1).squeeze() - 0.3).max() < 0.08  # everywhere alike
    assert torch.equal(masks, Random(0.3)(x, rng(1)))
    assert not torch.equal(masks, Random(0.3)(x, rng(2)))
    assert not torch.equal(masks[0], masks[1])
    assert not Random(0)(x, rng()).any()
    assert Random(1)(x, rng()).all()


@pytest.mark.parametrize(
    ("low", "zeros"),
    [
        ("ul", lambda r, c, h, w: r < h // 2 and c < w // 2),
        ("ur", lambda r, c, h, w: r < h // 2 and c >= w // 2),
        ("bl", lambda r, c, h, w: r >= h // 2 and c < w // 2),
        ("br", lambda r, c, h, w: r >= h // 2 and c >= w // 2),
    ],
)
@pytest.mark.parametrize("size", [(32, 32), (5, 8), (7, 7)])
def test_a_quadrant_is_the_quarter_without_the_full_budget(
    low: Any, zeros: Callable[..., bool], size: tuple[int, int]
) -> None:
    h, w = size
    mask = Quadrant(low)(torch.zeros(2, 3, h, w))
    assert mask.shape == (2, 1, h, w)
    expected = torch.tensor([[not zeros(r, c, h, w) for c in range(w)] for r in range(h)])
    assert torch.equal(mask[0, 0], expected)
    assert torch.equal(mask[1], mask[0])
    if size == (32, 32):
        assert (~mask[0]).sum() == 256


def test_the_four_quadrants_are_the_whole_image() -> None:
    low = [~Quadrant(corner)(torch.zeros(1, 1, 5, 7)) for corner in ("ul", "ur", "bl", "br")]  # type: ignore[arg-type]
    assert torch.equal(sum(m.int() for m in low), torch.ones(1, 1, 5, 7, dtype=torch.int32))


# --- masks from a file ---------------------------------------------------------------------------------------------

COUNT, CHANNELS, SIZE = 6, 3, (4, 5)


def drawn(*shape: int) -> Array:
    return torch.rand(shape, generator=rng(3)).numpy() > 0.5


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
@pytest.mark.parametrize("shape", [(6, 4, 5), (6, 1, 4, 5), (6, 3, 4, 5)])
def test_a_file_of_masks_is_read(kind: str, dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    masks = drawn(*shape)
    path = tmp_path / ("masks.npy" if kind == "npy" else "masks.npz")
    if kind == "npy":
        np.save(path, masks.astype(dtype))
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, anything=masks.astype(dtype))
    found = MaskFile(str(path)).read(COUNT, CHANNELS, SIZE)
    assert found.dtype == torch.bool
    assert found.shape == (6, shape[1] if len(shape) == 4 else 1, 4, 5)
    assert np.array_equal(found.numpy().reshape(shape), masks)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (
            (5, 4, 5),
            r"shape \(5, 4, 5\), needed is \(6, 4, 5\) or \(6, 1, 4, 5\) or \(6, 3, 4, 5\)\nhint: one mask per",
        ),
        ((6, 5, 4), r"shape \(6, 5, 4\), needed is"),
        ((6, 2, 4, 5), r"shape \(6, 2, 4, 5\), needed is"),
        ((6, 4, 5, 3), r"shape \(6, 4, 5, 3\), needed is"),
        ((120,), r"shape \(120,\), needed is"),
    ],
)
def test_masks_of_another_count_or_shape_are_refused(shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", drawn(*shape))
    with pytest.raises(FileError, match=said):
        MaskFile(str(tmp_path / "masks.npy")).read(COUNT, CHANNELS, SIZE)


def test_the_shapes_of_grey_images_are_named_once(tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", drawn(6, 3, 4, 5))
    with pytest.raises(FileError, match=r"needed is \(6, 4, 5\) or \(6, 1, 4, 5\)\n"):
        MaskFile(str(tmp_path / "masks.npy")).read(COUNT, 1, SIZE)


@pytest.mark.parametrize(
    "values",
    [
        np.full((6, 4, 5), 2),
        np.full((6, 4, 5), 0.5),
        np.full((6, 4, 5), np.nan),
        np.full((6, 4, 5), -1),
        np.full((6, 4, 5), 255, dtype=np.uint8),
        np.full((6, 4, 5), "1"),
        np.full((6, 4, 5), 1j),
    ],
)
def test_other_values_than_0_and_1_are_refused(values: Array, tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", values)
    with pytest.raises(FileError, match=r"masks of bool, or of 0 and 1\nhint: save `masks > 0.5` for soft masks"):
        MaskFile(str(tmp_path / "masks.npy")).read(COUNT, CHANNELS, SIZE)


def unreadable(kind: str, path: Path) -> None:
    good = path.with_name("good.npz")
    np.savez(good, masks=drawn(6, 4, 5))
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no masks here")
    elif kind == "pickled":
        path.write_bytes(pickle.dumps(drawn(6, 4, 5)))
    elif kind == "objects":
        np.save(path, np.array([None] * 6, dtype=object), allow_pickle=True)
    elif kind == "objects in npz":
        np.savez(path, masks=np.array([None] * 6, dtype=object))
    elif kind == "truncated npz":
        path.write_bytes(good.read_bytes()[:200])
    elif kind == "damaged npz":
        content = bytearray(good.read_bytes())
        content[160:220] = bytes(60)
        path.write_bytes(bytes(content))
    elif kind == "truncated npy":
        np.save(path.with_suffix(".npy"), drawn(6, 4, 5))
        path.write_bytes(path.with_suffix(".npy").read_bytes()[:150])
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    "kind",
    [
        "absent",
        "empty",
        "text",
        "pickled",
        "objects",
        "objects in npz",
        "truncated npz",
        "damaged npz",
        "truncated npy",
        "folder",
    ],
)
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("masks.npz" if "npz" in kind else "masks.npy")
    unreadable(kind, path)
    with pytest.raises(FileError, match=r"cannot read the masks .*masks\.np.*\nhint: numpy\.save"):
        MaskFile(str(path)).read(COUNT, CHANNELS, SIZE)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "masks.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FileError, match="cannot read the masks"):
        MaskFile(str(tmp_path / "masks.npy")).read(COUNT, CHANNELS, SIZE)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(("names", "held"), [(["train", "test"], "train, test"), ([], "none")])
def test_an_archive_of_more_or_less_than_one_array_is_refused(names: list[str], held: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "masks.npz", **{name: drawn(6, 4, 5) for name in names})
    with pytest.raises(FileError, match=rf"masks\.npz must hold one array of masks, it holds {held}$"):
        MaskFile(str(tmp_path / "masks.npz")).read(COUNT, CHANNELS, SIZE)


# --- by name -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("zscore", ZScore(1.0)),
        ("zscore:0.5", ZScore(0.5)),
        ("zscore:-1", ZScore(-1.0)),
        ("quantile", Quantile(0.8)),
        ("quantile:0", Quantile(0.0)),
        ("quantile:0.95", Quantile(0.95)),
        ("jet", Jet()),
        ("random", Random(0.2)),
        ("random:1", Random(1.0)),
        ("uniform", Random(0.0)),
        ("quadrant:ul", Quadrant("ul")),
        ("quadrant:ur", Quadrant("ur")),
        ("quadrant:bl", Quadrant("bl")),
        ("quadrant:br", Quadrant("br")),
        ("file:masks.npy", MaskFile("masks.npy")),
        ("file:C:/masks.npz", MaskFile("C:/masks.npz")),
    ],
)
def test_every_mask_has_a_name(name: str, mask: object) -> None:
    assert create_mask(name) == mask
    assert type(create_mask(name)) is type(mask)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("zsocre", "unknown mask 'zsocre'\nhint: did you mean zscore?"),
        ("colour", "unknown mask 'colour'\nhint: known: file, jet, quadrant, quantile, random, uniform, zscore"),
        ("", "unknown mask ''\nhint: known: file, jet, quadrant, quantile, random, uniform, zscore"),
        ("uniform:3", "unknown mask 'uniform:3'\nhint: did you mean uniform?"),
        ("jet:3", "unknown mask 'jet:3'\nhint: did you mean jet?"),
        ("zscore:high", "the mask zscore takes a number, got 'high'\nhint: such as zscore:0.8"),
        ("random:", "the mask random takes a number, got ''\nhint: such as random:0.8"),
        ("quantile:1", "the quantile of a mask lies in [0, 1), got 1.0"),
        ("quantile:-0.1", "the quantile of a mask lies in [0, 1), got -0.1"),
        ("quantile:nan", "the quantile of a mask lies in [0, 1), got nan"),
        ("random:1.5", "the share of a random mask lies in [0, 1], got 1.5"),
        ("random:nan", "the share of a random mask lies in [0, 1], got nan"),
        ("zscore:nan", "the threshold of a z-score mask must be finite, got nan"),
        ("zscore:inf", "the threshold of a z-score mask must be finite, got inf"),
        ("quadrant", "unknown quadrant ''\nhint: known: bl, br, ul, ur"),
        ("quadrant:lu", "unknown quadrant 'lu'\nhint: known: bl, br, ul, ur"),
        ("file", "unknown mask 'file'\nhint: file:masks.npy"),
        ("file:", "unknown mask 'file:'\nhint: file:masks.npy"),
        ("permuted", "permuted is no mask of its own: any mask can belong to another image\nhint: assign permuted"),
    ],
)
def test_another_name_is_refused_with_the_known_ones(name: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        create_mask(name)
    assert str(error.value) == said
