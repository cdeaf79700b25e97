"""The corruptions against their formulas: statistics of the noises, and slow loops over images for the others."""

from __future__ import annotations

import colorsys
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from gambeson.core.errors import FileError, InputError
from gambeson.core.streams import Streams
from gambeson.data.corruptions import CIFAR, CORRUPTIONS, SETS, TABLES, TINY, corrupt, read_textures, table_name
from gambeson.data.corruptions.blur import defocus_blur, disk
from gambeson.data.corruptions.draws import BLOCK, Draws
from gambeson.data.corruptions.frost import generated, shrink
from gambeson.data.corruptions.sampling import bilinear, fold, motion, zoom_matrix
from gambeson.data.corruptions.spatter import edges, equalised, relief
from gambeson.data.corruptions.weather import plasma

Array = np.ndarray[Any, Any]


def pictures(count: int = 6, channels: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth random images with a full range, as photographs have."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, size / 12, size / 12))
    low, high = smooth.min((1, 2, 3), keepdims=True), smooth.max((1, 2, 3), keepdims=True)
    return torch.from_numpy(((smooth - low) / (high - low) * 255).astype(np.uint8))


def constant(value: int, count: int = 40) -> Tensor:
    return torch.full((count, 3, 32, 32), value, dtype=torch.uint8)


def draws(name: str, severity: int, count: int) -> Draws:
    """The random numbers that `corrupt` uses with seed 0 for the first block."""
    return Draws(Streams(0).at(f"corruption/{name}/{severity}", 0), count)


def levels(x: Array) -> Array:
    """Values on [0, 1] as the published files hold them."""
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


# all of them


def test_the_sets() -> None:
    assert len(CORRUPTIONS) == len(SETS["all19"]) == 19
    assert len(SETS["standard15"]) == 15
    assert set(SETS["all19"]) - set(SETS["rift18"]) == {"glass_blur"}
    extra = {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    assert set(SETS["all19"]) - set(SETS["standard15"]) == extra
    for table in TABLES.values():
        assert set(table) == set(CORRUPTIONS)
        for rows in table.values():
            assert len(rows) == 5
            assert len({len(row) for row in rows}) == 1


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (3, 64), (1, 8), (1, 28), (3, 8)])
def test_every_corruption_changes_images_of_every_size(name: str, channels: int, size: int) -> None:
    x = pictures(5, channels, size)
    if name == "saturate" and channels == 1:
        with pytest.raises(InputError, match="saturate means nothing to grey images"):
            corrupt(x, name, 1)
        return
    before = x.clone()
    for severity in (1, 3, 5):
        found = corrupt(x, name, severity)
        assert found.dtype == torch.uint8
        assert found.shape == x.shape
        assert (found != x).any()
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_depends_neither_on_the_others_nor_on_their_number(name: str) -> None:
    x = pictures(BLOCK + 5, size=16)
    whole = corrupt(x, name, 3)
    assert torch.equal(whole, corrupt(x, name, 3))
    for count in (1, 7, BLOCK, BLOCK + 1):
        assert torch.equal(corrupt(x[:count], name, 3), whole[:count]), count
    other = x.clone()
    other[:3] = 255 - other[:3]
    assert torch.equal(corrupt(other, name, 3)[3:], whole[3:])


RANDOM = set(CORRUPTIONS) - {
    *("defocus_blur", "gaussian_blur", "zoom_blur", "brightness", "contrast", "saturate", "pixelate"),
    "jpeg_compression",
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_seed_moves_what_is_random_and_blocks_differ(name: str) -> None:
    x = pictures(1, size=16).repeat(BLOCK + 1, 1, 1, 1)
    first, second = corrupt(x, name, 3, seed=0), corrupt(x, name, 3, seed=1)
    assert torch.equal(first, second) == (name not in RANDOM)
    assert torch.equal(first[0], first[1]) == (name not in RANDOM)
    assert torch.equal(first[0], first[BLOCK]) == (name not in RANDOM)


GROWING = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur", "zoom_blur"),
    *("fog", "brightness", "contrast", "pixelate", "jpeg_compression", "snow"),
)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", GROWING)
def test_more_severe_is_further_away(name: str, table: str) -> None:
    x = pictures(60)
    change = [(corrupt(x, name, s, parameters=table).float() - x.float()).abs().mean() for s in range(1, 6)]
    assert change == sorted(change)
    assert change[0] < 0.8 * change[-1]


def test_what_is_refused() -> None:
    x = pictures(2)
    for call, words in (
        (lambda: corrupt(x, "gausian_noise", 1), "did you mean gaussian_noise"),
        (lambda: corrupt(x, "fog", 0), "a severity must be 1, 2, 3, 4 or 5, got 0"),
        (lambda: corrupt(x.float() / 255, "fog", 1), r"must be uint8 \(N, C, S, S\), got torch.float32"),
        (lambda: corrupt(x[..., :16], "fog", 1), "must be square"),
        (lambda: corrupt(x[..., :7, :7], "fog", 1), "at least 8 pixels"),
        (lambda: corrupt(x, "fog", 1, parameters="imagenet"), "unknown table of parameters 'imagenet'"),
        (lambda: corrupt(x, "frost", 1, textures=[]), "there are no frost textures"),
        (lambda: corrupt(x, "frost", 1, textures=[np.zeros((50, 50, 3), np.uint8)]), "10x10|50x50"),
        (lambda: corrupt(x, "frost", 1, textures=[np.zeros((500, 500), np.uint8)]), r"uint8 \(H, W, 3\)"),
    ):
        with pytest.raises(InputError, match=words):
            call()
    with pytest.raises(FileError, match="there is no folder nowhere"):
        corrupt(x, "frost", 1, textures="nowhere")


def test_the_table_is_chosen_by_the_size() -> None:
    assert [table_name(size) for size in (8, 28, 32, 33, 64, 96)] == ["cifar"] * 3 + ["tiny"] * 3
    x = pictures(2, size=32)
    assert torch.equal(corrupt(x, "contrast", 1), corrupt(x, "contrast", 1, parameters="cifar"))
    assert not torch.equal(corrupt(x, "contrast", 1), corrupt(x, "contrast", 1, parameters="tiny"))


def test_no_images_give_no_images() -> None:
    assert corrupt(pictures(2)[:0], "gaussian_noise", 1).shape == (0, 3, 32, 32)


def test_importing_the_data_package_is_cheap() -> None:
    code = (
        "import sys, gambeson.data, gambeson.data.corruptions.names; assert gambeson.data.CORRUPTIONS;"
        "assert not {'torch', 'scipy', 'numpy', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# noise


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise_has_its_mean_and_spread(severity: int) -> None:
    found = corrupt(constant(128), "gaussian_noise", severity).double() / 255
    (sigma,) = CIFAR["gaussian_noise"][severity - 1]
    assert float(found.mean()) == pytest.approx(127.5 / 255, abs=5 * sigma / found.numel() ** 0.5)  # truncated
    assert float(found.std()) == pytest.approx(sigma, rel=0.02)


@pytest.mark.parametrize("value", [60, 160])
def test_speckle_noise_grows_with_the_value(value: int) -> None:
    found = corrupt(constant(value), "speckle_noise", 2).double()
    assert float(found.std()) == pytest.approx(0.1 * value, rel=0.02)
    assert float(found.mean()) == pytest.approx(value - 0.5, abs=0.3)


@pytest.mark.parametrize(("severity", "value"), [(1, 128), (3, 60), (5, 30)])
def test_shot_noise_is_poisson(severity: int, value: int) -> None:
    from scipy.stats import poisson

    (rate,) = CIFAR["shot_noise"][severity - 1]
    found = corrupt(constant(value), "shot_noise", severity).numpy()
    unit = found / 255
    assert unit.mean() == pytest.approx(value / 255 - 0.4 / 255, abs=0.003)
    assert unit.var() == pytest.approx(value / 255 / rate, rel=0.03)
    counts = np.arange(0, int(rate) + 1)
    shares = poisson.pmf(counts, rate * value / 255)
    for count in np.argsort(shares)[-5:]:  # the most frequent ones, exactly
        share = (found == int(min(count / rate, 1) * 255)).mean()
        alike = {c for c in counts if int(min(c / rate, 1) * 255) == int(min(count / rate, 1) * 255)}
        expected = sum(shares[c] for c in alike)
        assert share == pytest.approx(expected, abs=5 * (expected / found.size) ** 0.5)


@pytest.mark.parametrize("table", TABLES)
def test_shot_noise_is_the_inverse_of_the_distribution(table: str) -> None:
    from scipy.stats import poisson

    x = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    for severity in (1, 5):
        (rate,) = TABLES[table]["shot_noise"][severity - 1]
        u = draws("shot_noise", severity, 4).uniform(1, 8, 8)
        exact = levels(poisson.ppf(u, rate * (x.numpy() / 255)) / rate)
        assert np.array_equal(exact[x.numpy() > 0], corrupt(x, "shot_noise", severity, parameters=table)[x > 0])


def test_shot_noise_leaves_black() -> None:
    assert int(corrupt(constant(0, 2), "shot_noise", 5).max()) == 0


@pytest.mark.parametrize("severity", [1, 5])
def test_impulse_noise_has_its_share_of_both_kinds(severity: int) -> None:
    (p,) = CIFAR["impulse_noise"][severity - 1]
    found = corrupt(constant(128), "impulse_noise", severity)
    for value in (0, 255):
        share = float((found == value).double().mean())
        assert share == pytest.approx(p / 2, abs=5 * (p / 2 / found.numel()) ** 0.5)
    assert set(found.unique().tolist()) == {0, 128, 255}


# blur


def test_gaussian_blur_against_one_image_at_a_time() -> None:
    x = pictures(4)
    found = corrupt(x, "gaussian_blur", 5).numpy()
    for image, blurred in zip(x.numpy() / 255, found, strict=True):
        for channel, other in zip(image, blurred, strict=True):
            reach = np.arange(-4, 5)
            kernel = np.exp(-(reach**2) / 2)
            kernel /= kernel.sum()
            padded = np.pad(channel, 4, mode="edge")
            rows = np.array([np.convolve(row, kernel, "valid") for row in padded])
            slow = np.array([np.convolve(column, kernel, "valid") for column in rows.T]).T
            assert np.abs(levels(slow).astype(int) - other).max() <= 1
            assert (levels(slow) == other).mean() > 0.99


@pytest.mark.parametrize(("table", "severity"), [("cifar", 1), ("cifar", 5), ("tiny", 5)])
def test_defocus_blur_against_the_disk_on_17_pixels(table: str, severity: int) -> None:
    radius, alias = TABLES[table]["defocus_blur"][severity - 1]
    line = np.arange(-8, 9)
    kernel = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    kernel /= kernel.sum()
    soft = np.exp(-(np.array([-1, 0, 1]) ** 2) / (2 * alias**2))
    kernel = ndimage.convolve(kernel, np.outer(soft, soft) / soft.sum() ** 2)
    x = pictures(3)
    found = defocus_blur(x.numpy(), (radius, alias), draws("defocus_blur", severity, 3))
    assert np.array_equal(found.clip(0, 255).astype(np.uint8), corrupt(x, "defocus_blur", severity, parameters=table))
    for image, blurred in zip(x.numpy() / 255, found, strict=True):
        for channel, other in zip(image, blurred, strict=True):
            padded = np.pad(channel, 8, mode="reflect")
            windows = np.lib.stride_tricks.sliding_window_view(padded, (17, 17))
            # Before truncation: the mean of nine levels is often a whole number, and rounding decides.
            assert other == pytest.approx(255 * np.einsum("ijkl,kl->ij", windows, kernel), abs=1e-9)
    assert disk(radius, alias).sum() == pytest.approx(1)


@pytest.mark.parametrize(("table", "severity"), [("cifar", 2), ("cifar", 5), ("tiny", 4)])
def test_glass_blur_against_the_double_loop(table: str, severity: int) -> None:
    sigma, delta, rounds = TABLES[table]["glass_blur"][severity - 1]
    delta, rounds, size = int(delta), int(rounds), 16
    x = pictures(3, size=size)
    found = corrupt(x, "glass_blur", severity, parameters=table).numpy()
    line = list(range(size - delta, delta, -1))
    offsets = draws("glass_blur", severity, 3).integers(-delta, delta, rounds, len(line), len(line), 2)
    assert (offsets.min(), offsets.max()) == (-delta, delta - 1)
    for number, image in enumerate(x.numpy()):
        blurred = ndimage.gaussian_filter(image.transpose(1, 2, 0) / 255, (sigma, sigma, 0), mode="nearest")
        pixels = (blurred * 255).astype(np.uint8)
        for turn in range(rounds):
            for i, h in enumerate(line):
                for j, w in enumerate(line):
                    dx, dy = offsets[number, turn, i, j]
                    # The published line, with its aliasing: views on both sides.
                    pixels[h, w], pixels[h + dy, w + dx] = pixels[h + dy, w + dx], pixels[h, w]
        slow = levels(ndimage.gaussian_filter(pixels / 255, (sigma, sigma, 0), mode="nearest"))
        assert np.array_equal(slow.transpose(2, 0, 1), found[number])


def test_motion_blur_against_shifts_of_one_image() -> None:
    x = pictures(4, size=24)
    found = corrupt(x, "motion_blur", 5).numpy()
    angles = np.deg2rad(draws("motion_blur", 5, 4).uniform(low=-45, high=45))
    radius, sigma = CIFAR["motion_blur"][4]
    for image, angle, blurred in zip(x.numpy().astype(float), angles, found, strict=True):
        weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * int(radius) + 1)]
        slow = np.zeros_like(image)
        for i, weight in enumerate(weights):
            down, right = -math.ceil(i * math.sin(angle) - 0.5), -math.ceil(i * math.cos(angle) - 0.5)
            shifted = np.pad(image, ((0, 0), (24, 24), (24, 24)), mode="edge")
            slow += weight * shifted[:, 24 - down : 48 - down, 24 - right : 48 - right]
        slow /= sum(weights)
        assert np.array_equal(np.rint(slow), blurred)


def test_motion_of_a_point_is_one_sided_and_keeps_its_sum() -> None:
    x = np.zeros((1, 1, 31, 31))
    x[0, 0, 15, 15] = 1
    row = motion(x, 6, 2, np.zeros(1))[0, 0, 15]
    assert row.sum() == pytest.approx(1)
    assert row[16:].sum() == 0
    assert row[15] == row.max()


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_the_enlargement_is_scipys(size: int) -> None:
    image = np.random.default_rng(0).random((size, size))
    for factor in [*np.arange(1, 1.26, 0.01), 1.75, 2.25]:
        rows = math.ceil(size / factor)
        top = (size - rows) // 2
        grown = ndimage.zoom(image[top : top + rows, top : top + rows], factor, order=1)
        trim = (grown.shape[0] - size) // 2
        matrix = zoom_matrix(size, factor)
        assert matrix @ image @ matrix.T == pytest.approx(grown[trim : trim + size, trim : trim + size], abs=1e-9)


def test_zoom_blur_is_the_mean_of_the_enlargements() -> None:
    x = pictures(2)
    found = corrupt(x, "zoom_blur", 2).numpy()
    factors = np.arange(1, 1.11, 0.01)
    assert len(factors) == 12  # rounding includes the end
    assert [len(np.arange(1, row[0], 0.01)) for row in CIFAR["zoom_blur"]] == [7, 12, 16, 21, 26]
    for image, blurred in zip(x.numpy() / 255, found, strict=True):
        total = image.copy()
        for factor in factors:
            rows = math.ceil(32 / factor)
            top = (32 - rows) // 2
            grown = ndimage.zoom(image[:, top : top + rows, top : top + rows], (1, factor, factor), order=1)
            trim = (grown.shape[1] - 32) // 2
            total += grown[:, trim : trim + 32, trim : trim + 32]
        assert np.abs(levels(total / 13).astype(int) - blurred).max() <= 1
        assert (levels(total / 13) == blurred).mean() > 0.99


# weather


def test_the_plasma_against_a_slow_one() -> None:
    for side, decay in ((8, 3.0), (32, 1.75)):
        found = plasma(side, decay, draws("fog", 1, 2))
        random = draws("fog", 1, 2)
        maps = np.zeros((2, side, side))
        step, wobble = side, 100.0
        while step > 1:
            half = step // 2
            for kind in ("middle", "across", "down"):
                noise = random.uniform(side // step, side // step, low=-wobble, high=wobble) * wobble
                for i in range(side // step):
                    for j in range(side // step):
                        y, x = i * step + half * (kind != "across"), j * step + half * (kind != "down")
                        at = [(-half, -half), (-half, half), (half, -half), (half, half)]
                        at = at if kind == "middle" else [(-half, 0), (half, 0), (0, -half), (0, half)]
                        total = sum(maps[:, (y + a) % side, (x + b) % side] for a, b in at)
                        maps[:, y, x] = total / 4 + noise[:, i, j]
            step, wobble = half, wobble / decay
        maps -= maps.min((1, 2), keepdims=True)
        assert found == pytest.approx(maps / maps.max((1, 2), keepdims=True))


def test_fog_is_a_mixture_with_the_plasma() -> None:
    x = pictures(3) // 2
    haze = plasma(32, 2.5, draws("fog", 3, 3))
    for image, cloud, found in zip(x.numpy() / 255, haze, corrupt(x, "fog", 3).numpy(), strict=True):
        assert np.array_equal(levels((image + 0.75 * cloud) * image.max() / (image.max() + 0.75)), found)


def test_snow_against_the_formula() -> None:
    x = pictures(3)
    mean, std, zoom, threshold, radius, sigma, alpha = CIFAR["snow"][3]
    random = draws("snow", 4, 3)
    noise = random.normal(1, 32, 32)[:, 0]
    angles = random.uniform(low=-135, high=-45)
    for image, layer, angle, found in zip(x.numpy() / 255, noise, angles, corrupt(x, "snow", 4).numpy(), strict=True):
        rows = math.ceil(32 / zoom)
        top = (32 - rows) // 2
        grown = ndimage.zoom((mean + std * layer)[top : top + rows, top : top + rows], zoom, order=1)
        trim = (len(grown) - 32) // 2
        grown = grown[trim : trim + 32, trim : trim + 32]
        grown[grown < threshold] = 0
        flakes = (
            np.rint(motion(levels(grown)[None, None].astype(float), radius, sigma, np.deg2rad([angle]))[0, 0]) / 255
        )
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        white = alpha * image + (1 - alpha) * np.maximum(image, grey * 1.5 + 0.5)
        slow = levels(white + flakes + np.rot90(flakes, 2))
        assert np.abs(slow.astype(int) - found).max() <= 1
        assert (slow == found).mean() > 0.99


def test_frost_is_a_mixture_with_a_part_of_a_texture() -> None:
    x = pictures(30)
    textures = [np.full((300, 400, 3), (value, 50, 20), np.uint8) for value in (40, 60, 80, 100, 120, 250)]
    found = corrupt(x, "frost", 3, textures=textures)
    seen = set()
    for image, changed in zip(x.numpy(), found.numpy(), strict=True):
        matches = [
            t[0, 0, 0]
            for t in textures
            if np.array_equal((0.9 * image + 0.4 * t[0, 0].reshape(3, 1, 1)).clip(0, 255).astype(np.uint8), changed)
        ]
        assert len(matches) == 1
        seen |= set(matches)
    assert seen == {40, 60, 80, 100, 120}  # the sixth is never used


def test_frost_takes_another_part_for_every_image() -> None:
    ramp = np.arange(400 * 400 * 3).reshape(400, 400, 3).astype(np.uint8)
    found = corrupt(constant(0, 20), "frost", 5, textures=[ramp])
    assert len({image.numpy().tobytes() for image in found}) > 15


def test_photographs_are_made_smaller_between_pixel_centres() -> None:
    texture = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    assert np.array_equal(shrink(texture, 0.2), texture[2::5, 2::5])  # the centre of five pixels is the third
    small = shrink(texture, 0.3)
    assert small.shape == (15, 12, 3)
    rows, columns = ((np.arange(n) + 0.5) / 0.3 - 0.5 for n in (15, 12))
    grid = np.stack(np.meshgrid(rows, columns, indexing="ij"))
    exact = np.stack([ndimage.map_coordinates(texture[..., c].astype(float), grid, order=1) for c in range(3)], -1)
    assert np.abs(small - exact).max() <= 0.5 + 1e-9


def test_textures_of_a_folder(tmp_path: Path) -> None:
    for name, value in (("frost2.png", 2), ("frost1.png", 1)):
        Image.new("RGB", (200, 190), (value, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    found = read_textures(tmp_path)
    assert [texture[0, 0, 0] for texture in found] == [1, 2]
    assert found[0].shape == (190, 200, 3)
    x = pictures(2)
    assert torch.equal(corrupt(x, "frost", 1, textures=tmp_path), corrupt(x, "frost", 1, textures=found))
    (tmp_path / "frost3.png").write_bytes(b"damaged")
    with pytest.raises(FileError, match=r"frost3\.png cannot be decoded"):
        read_textures(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileError, match="holds no images"):
        read_textures(empty)


def test_generated_frost_is_bright_bluish_and_the_same_every_time() -> None:
    textures = generated(64)
    first = textures[0].copy()
    generated.cache_clear()
    assert np.array_equal(first, generated(64)[0])
    assert len(textures) == 5
    for texture in textures:
        red, _, blue = texture.mean((0, 1))
        assert 40 < texture.mean() < 180
        assert texture.std() > 15
        assert blue > red


# spatter


def test_mud_covers() -> None:
    x = pictures(3)
    mean, std, sigma, threshold, mix, _ = CIFAR["spatter"][4]
    noise = draws("spatter", 5, 3).normal(32, 32)
    for image, layer, found in zip(x.numpy() / 255, noise, corrupt(x, "spatter", 5).numpy(), strict=True):
        liquid = ndimage.gaussian_filter(mean + std * layer, sigma, mode="nearest")
        cover = ndimage.gaussian_filter((liquid > threshold).astype(float), mix, mode="nearest")
        cover[cover < 0.8] = 0
        brown = np.array([63, 42, 20]).reshape(3, 1, 1) / 255
        assert np.array_equal(levels(image * (1 - cover) + brown * cover), found)


def test_water_adds_pale_turquoise() -> None:
    change = corrupt(constant(0, 100), "spatter", 3).double().mean((0, 2, 3))
    assert float(change[0]) > 0.5
    assert float(change[1] / change[0]) == pytest.approx(238 / 175, rel=0.1)
    assert float(corrupt(constant(0, 100), "spatter", 3).max()) == int(0.5 * 238)


def test_edges_of_a_square_are_its_outline() -> None:
    image = np.zeros((2, 24, 24), np.uint8)
    image[0, 6:18, 6:18] = 200
    found = edges(image, 50, 150)
    assert not found[1].any()
    outline = np.zeros((24, 24), bool)
    outline[4:20, 4:20] = True
    outline[8:16, 8:16] = False
    assert found[0].any()
    assert not (found[0] & ~outline).any()
    assert found[0, 12].sum() == 2  # thin: one pixel on either side
    assert found[0, :, 12].sum() == 2


def test_a_weak_edge_stays_only_where_it_touches_a_strong_one() -> None:
    step = np.zeros((2, 16, 16), np.uint8)
    step[:, :, 8:] = 20  # gradient 4 * 20 = 80, between the thresholds
    step[1, 12:, 8:] = 60
    found = edges(step, 50, 150)
    assert not found[0].any()
    assert found[1, 2].any()
    assert found[1, 14].any()


def test_edges_against_one_pixel_at_a_time() -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).uniform(0, 255, (20, 20)), 1.2) * 2 - 128
    image = image.clip(0, 255).astype(np.uint8)
    padded = np.pad(image.astype(int), 1, mode="edge")
    size, ways = np.zeros((22, 22)), {}
    for i, j in np.ndindex(20, 20):
        w = padded[i : i + 3, j : j + 3]
        gx = int(w[:, 2] @ [1, 2, 1] - w[:, 0] @ [1, 2, 1])
        gy = int(w[2] @ [1, 2, 1] - w[0] @ [1, 2, 1])
        size[i + 1, j + 1] = abs(gx) + abs(gy)
        angle = math.degrees(math.atan2(gy, gx)) % 180
        ways[i, j] = [(0, 1), (1, 1), (1, 0), (1, -1)][round(angle / 45) % 4]
    crest = set()
    for (i, j), (down, right) in ways.items():
        here, back, on = size[i + 1, j + 1], size[i + 1 - down, j + 1 - right], size[i + 1 + down, j + 1 + right]
        diagonal = down and right
        if here > 50 and here > back and (here > on if diagonal else here >= on):
            crest.add((i, j))
    kept = {place for place in crest if size[place[0] + 1, place[1] + 1] > 150}
    while True:
        more = {(i, j) for i, j in crest - kept if any(max(abs(i - a), abs(j - b)) == 1 for a, b in kept)}
        if not more:
            break
        kept |= more
    assert {tuple(place) for place in np.argwhere(edges(image[None], 50, 150)[0]).tolist()} == kept
    assert len(kept) > 20
    assert len({ways[place] for place in kept}) == 4


def test_equalised_levels_by_hand() -> None:
    image = np.array([[[5, 5, 7, 9]], [[3, 3, 3, 3]]], np.uint8)
    assert equalised(image).tolist() == [[[0, 0, 128, 255]], [[3, 3, 3, 3]]]


def slow_distances(border: Array) -> Array:
    """The chamfer length between two pixels in closed form, least over the border."""
    at = np.argwhere(border)
    found = np.full(border.shape, 20.0)
    for place in np.ndindex(*border.shape):
        far, near = np.sort(np.abs(at - place), axis=1).T[::-1]
        # Knight's steps where they lead: towards the axis (1, 2.1969) or towards the diagonal (2.1969, 1.4).
        lengths = np.where(far >= 2 * near, far + (2.1969 - 2) * near, (2.1969 - 1.4) * far + (2.8 - 2.1969) * near)
        found[place] = min(20.0, lengths.min())
    return found


def test_the_relief_of_each_drop_is_that_of_its_image_alone() -> None:
    rng = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(rng.normal(0.65, 0.3, (5, 32, 32)), (0, 1, 1))
    image = np.where(blobs < 0.69, 0, np.clip(blobs * 255, 0, 255)).astype(np.uint8)
    image[4] = 0
    together = relief(image)
    for number in range(4):
        border = edges(image[number : number + 1], 50, 150)[0]
        assert border.any()
        distance = slow_distances(border)
        near = np.floor(ndimage.convolve(distance, np.full((3, 3), 1 / 9), mode="mirror") + 1e-9).astype(np.uint8)
        spread = equalised(near[None])[0].astype(float)
        kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
        lit = np.clip(ndimage.correlate(spread, kernel, mode="mirror"), 0, 255)
        slow = np.rint(ndimage.convolve(lit, np.full((3, 3), 1 / 9), mode="mirror"))
        assert np.abs(slow - together[number]).max() <= 1


# digital


def test_brightness_and_saturation_against_colorsys() -> None:
    x = pictures(1, size=12)
    x[0, :, 0, 0], x[0, :, 0, 1], x[0, :, 0, 2] = 0, 128, torch.tensor([255, 0, 0])
    for name in ("brightness", "saturate"):
        for severity in range(1, 6):
            c = CIFAR[name][severity - 1]
            found = corrupt(x, name, severity)[0].numpy()
            for i in range(12):
                for j in range(12):
                    h, s, v = colorsys.rgb_to_hsv(*(x[0, :, i, j].numpy() / 255))
                    if name == "brightness":
                        v = min(v + c[0], 1)
                    else:
                        s = min(max(s * c[0] + c[1], 0), 1)
                    expected = np.array(colorsys.hsv_to_rgb(h, s, v)) * 255
                    assert np.abs(np.floor(expected + 1e-9) - found[:, i, j]).max() <= (
                        np.abs(expected - np.rint(expected)).min() < 1e-6
                    )


def test_contrast_is_exact() -> None:
    x = pictures(3)
    unit = x.numpy() / 255
    mean = unit.mean((2, 3), keepdims=True)
    assert np.array_equal(corrupt(x, "contrast", 5).numpy(), levels((unit - mean) * 0.15 + mean))


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 3), (28, 1)])
def test_pixelate_and_jpeg_are_pillows(size: int, channels: int) -> None:
    x = pictures(3, channels, size)
    table = TABLES["tiny" if size == 64 else "cifar"]
    few, quality = int(size * table["pixelate"][3][0]), int(table["jpeg_compression"][3][0])
    blocks, squeezed = corrupt(x, "pixelate", 4).numpy(), corrupt(x, "jpeg_compression", 4).numpy()
    for number, pixels in enumerate(x.permute(0, 2, 3, 1).numpy()):
        image = Image.fromarray(pixels.squeeze())
        down = image.resize((few, few), Image.Resampling.BOX).resize((size, size), Image.Resampling.BOX)
        assert np.array_equal(np.asarray(down).reshape(size, size, channels), blocks[number].transpose(1, 2, 0))
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=quality)
        assert np.array_equal(
            np.asarray(Image.open(stored)).reshape(size, size, channels), squeezed[number].transpose(1, 2, 0)
        )


@pytest.mark.parametrize(("table", "severity"), [("cifar", 1), ("cifar", 2), ("cifar", 5), ("tiny", 3)])
def test_elastic_transform_against_scipy(table: str, severity: int) -> None:
    size = 32
    x = pictures(3)
    alpha, sigma, affine = (size * value for value in TABLES[table]["elastic_transform"][severity - 1])
    random = draws("elastic_transform", severity, 3)
    shifts = random.uniform(3, 2, low=-affine, high=affine)
    fields = [random.uniform(size, size, low=-1, high=1) for _ in range(2)]
    found = corrupt(x, "elastic_transform", severity, parameters=table).numpy()
    points = np.array([[26.0, 26.0], [26.0, 6.0], [6.0, 6.0]])  # (x, y)
    rows, columns = np.mgrid[:size, :size]
    for number, image in enumerate(x.numpy() / 255):
        forward = np.zeros((2, 3))  # [x', y'] = forward [x, y, 1], one equation for each point and coordinate
        design = np.column_stack([points, np.ones(3)])
        for axis in range(2):
            forward[axis] = np.linalg.solve(design, points[:, axis] + shifts[number, :, axis])
        inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
        right, down = (
            alpha * (ndimage.gaussian_filter(f[number], sigma, mode="reflect", truncate=3) if sigma else f[number])
            for f in fields
        )
        for channel, changed in zip(image, found[number], strict=True):
            warped = np.zeros((size, size))
            for y in range(size):
                for x_ in range(size):
                    source = inverse @ [x_, y, 1]
                    warped[y, x_] = ndimage.map_coordinates(
                        channel, [[source[1]], [source[0]]], order=1, mode="mirror"
                    )[0]
            slow = levels(ndimage.map_coordinates(warped, [rows + down, columns + right], order=1, mode="reflect"))
            assert np.abs(slow.astype(int) - changed).max() <= 1
            assert (slow == changed).mean() > 0.98


@pytest.mark.parametrize("border", ["mirror", "reflect"])
def test_the_border_is_scipys(border: Any) -> None:
    image = np.random.default_rng(0).random((1, 1, 7, 9))
    rows, columns = np.random.default_rng(1).uniform(-15, 20, (2, 1, 11, 11))
    expected = ndimage.map_coordinates(image[0, 0], [rows[0], columns[0]], order=1, mode=border)
    assert bilinear(image, rows, columns, border)[0, 0] == pytest.approx(expected)
    assert fold(np.array([-1, 7]), 7, "mirror").tolist() == [1, 5]
    assert fold(np.array([-1, 7]), 7, "reflect").tolist() == [0, 6]


def test_a_grey_image_is_corrupted_as_a_coloured_one_of_three_equal_channels() -> None:
    grey = pictures(4, channels=1)
    colour = grey.repeat(1, 3, 1, 1)
    for name in ("brightness", "contrast", "zoom_blur", "motion_blur", "snow", "fog", "elastic_transform", "pixelate"):
        thick = corrupt(colour, name, 4)
        assert (thick - corrupt(grey, name, 4)).numpy().view(np.int8).__abs__().max() <= 1, name


def test_tiny_parameters_differ_where_they_should() -> None:
    assert {name for name in CORRUPTIONS if CIFAR[name] == TINY[name]} == {"zoom_blur"}
