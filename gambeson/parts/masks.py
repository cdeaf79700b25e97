"""Which pixels keep the full budget: rules that turn maps into masks, and masks that need no map."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from gambeson.core.errors import FileError, InputError, nearest

if TYPE_CHECKING:
    from torch import Generator, Tensor

Corner = Literal["ul", "ur", "bl", "br"]
"""Upper left, upper right, bottom left, bottom right."""


@dataclass(frozen=True)
class ZScore:
    """Pixels whose squared map lies more than `threshold` standard deviations above the image's mean.

    `v = u^2` with u the up-sampled map in [0, 1]; full where `(v - mean(v)) / std(v) > threshold`. One mask for all
    channels: PART as its paper describes it.

    Args:
        threshold: In standard deviations, finite.
    """

    threshold: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise InputError(f"the threshold of a z-score mask must be finite, got {self.threshold}")

    def __call__(self, u: Tensor) -> Tensor:
        """Mask `(N, 1, H, W)`, bool, from maps `(N, H, W)`."""
        v = u.square()
        mean, std = v.mean((1, 2), keepdim=True), v.std((1, 2), correction=0, keepdim=True)
        return (v > mean + self.threshold * std)[:, None]


@dataclass(frozen=True)
class Quantile:
    """Pixels above the q-quantile of their image's map: a share of about `1 - q`, the same for every image.

    Args:
        q: In [0, 1).
    """

    q: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.q < 1:
            hint = f"{self.q:g} % is quantile:{self.q / 100:g}" if 1 < self.q < 100 else None
            raise InputError(f"the quantile of a mask lies in [0, 1), got {self.q}", hint=hint)

    def __call__(self, u: Tensor) -> Tensor:
        """Mask `(N, 1, H, W)`, bool, from maps `(N, H, W)`."""
        threshold = u.flatten(1).quantile(self.q, dim=1)
        return (u > threshold[:, None, None])[:, None]


@dataclass(frozen=True)
class Jet:
    """The rule of PART's release: a map drawn in matplotlib's jet colours, thresholded channel by channel.

    `rgb = jet(u^2)`; full where `rgb > mean + std` over all pixels and the three channels. Each channel then keeps the
    full budget on a band of middle values, blue on low ones, red on high ones, and the peak of the map, dark red, in
    none of them. For images with three channels.
    """

    def require_channels(self, channels: int) -> None:
        """Refuse images of another number of channels.

        Raises:
            InputError: It is not three.
        """
        if channels != 3:
            raise InputError(
                f"the jet mask has three channels, the images have {channels}", hint="use zscore or quantile"
            )

    def __call__(self, u: Tensor) -> Tensor:
        """Mask `(N, 3, H, W)`, bool, from maps `(N, H, W)`."""
        table = _on_device(jet_table, u.dtype, u.device)
        level = (u.square() * 256).long().clamp_(0, 255)
        rgb = table.index_select(0, level.flatten()).unflatten(0, level.shape)
        mean = rgb.mean((1, 2, 3), keepdim=True)
        # by moments: rgb.std takes longer than all the rest
        std = (rgb.square().mean((1, 2, 3), keepdim=True) - mean.square()).clamp_min(0).sqrt()
        return (rgb > mean + std).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Random:
    """Every pixel with the same probability, drawn anew at every step: a control.

    Args:
        share: Probability of the full budget, in [0, 1].
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise InputError(f"the share of a random mask lies in [0, 1], got {self.share}")

    def __call__(self, x: Tensor, rng: Generator) -> Tensor:
        """Mask `(N, 1, H, W)` for images `(N, C, H, W)`."""
        n, _, h, w = x.shape
        return torch.rand((n, 1, h, w), generator=rng, device=x.device) < self.share


@dataclass(frozen=True)
class Quadrant:
    """All of the image but one quarter, in the coordinates of the network's input (after crop and flip).

    Args:
        low: The quarter with the low budget: `ul`, `ur`, `bl` or `br`.

    References:
        The regional experiment of PART (figure 1), see `gambeson.diagnosis.regions`.
    """

    low: Corner

    def __post_init__(self) -> None:
        if self.low not in get_args(Corner):
            raise InputError(f"unknown quadrant {self.low!r}", hint=nearest(self.low, get_args(Corner)))

    def __call__(self, x: Tensor) -> Tensor:
        """Mask `(N, 1, H, W)` for images `(N, C, H, W)`."""
        n, _, h, w = x.shape
        rows = slice(0, h // 2) if self.low[0] == "u" else slice(h // 2, h)
        columns = slice(0, w // 2) if self.low[1] == "l" else slice(w // 2, w)
        mask = torch.ones((1, 1, h, w), dtype=torch.bool, device=x.device)
        mask[:, :, rows, columns] = False
        return mask.expand(n, 1, h, w)


@dataclass(frozen=True)
class MaskFile:
    """Masks of your own, such as segmentations: one for every training image, in the order of the data set's files.

    Args:
        path: `.npy`, or `.npz` with one array: `(N, H, W)` or `(N, 1 or C, H, W)`, bool or 0 and 1; 1 keeps the full
            budget.
    """

    path: str

    def read(self, count: int, channels: int, size: tuple[int, int]) -> Tensor:
        """The masks, bool `(count, 1 or C, H, W)`.

        Args:
            count: Images of the whole training set, with those that are held out.
            channels: Channels of the images.
            size: Height and width of the images.

        Raises:
            FileError: The file cannot be read, or holds another number of masks, another shape or other values.
        """
        import zipfile
        import zlib

        import numpy as np

        try:
            found = np.load(Path(self.path).expanduser(), allow_pickle=False)
            if not isinstance(found, np.ndarray):
                with found as archive:
                    if len(archive.files) != 1:
                        held = ", ".join(archive.files) or "none"
                        raise FileError(f"{self.path} must hold one array of masks, it holds {held}")
                    found = archive[archive.files[0]]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not an .npy or .npz file"
            raise FileError(
                f"cannot read the masks {self.path}: {reason}",
                hint="numpy.save('masks.npy', masks) writes such a file",
            ) from None
        shapes = [(count, *size), (count, 1, *size), (count, channels, *size)]
        if found.shape not in shapes:
            allowed = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
            raise FileError(
                f"{self.path} holds masks of shape {found.shape}, needed is {allowed}",
                hint="one mask per training image of the data set, in the order of its files, of the images' size",
            )
        if found.dtype != bool and (found.dtype.kind not in "uif" or not np.isin(found, (0, 1)).all()):
            raise FileError(
                f"{self.path} must hold masks of bool, or of 0 and 1", hint="save `masks > 0.5` for soft masks"
            )
        masks = torch.from_numpy(found.astype(bool))
        return masks[:, None] if masks.ndim == 3 else masks


Rule = ZScore | Quantile | Jet
"""A mask made from class-activation maps."""

Mask = ZScore | Quantile | Jet | Random | Quadrant | MaskFile


def create_mask(name: str) -> Mask:
    """The mask called `zscore[:T]`, `quantile[:Q]`, `jet`, `random[:SHARE]`, `quadrant:ul|ur|bl|br` or `file:PATH`.

    `uniform` is the control without any pixel in the mask: the low budget everywhere.

    Raises:
        InputError: Another name, or a value that does not fit.

    Examples:
        >>> create_mask("quantile:0.9")
        Quantile(q=0.9)
    """
    kind, colon, value = name.partition(":")
    numbers: dict[str, type[ZScore] | type[Quantile] | type[Random]]
    numbers = {"zscore": ZScore, "quantile": Quantile, "random": Random}
    if kind == "jet" and not colon:
        return Jet()
    if kind == "uniform" and not colon:
        return Random(0.0)
    if kind in numbers and not colon:
        return numbers[kind]()
    if kind in numbers:
        try:
            return numbers[kind](float(value))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the mask {kind} takes a number, got {value!r}", hint=f"such as {kind}:0.8") from None
    if kind == "quadrant":
        return Quadrant(value)  # type: ignore[arg-type]  # checked there
    if kind == "file" and value:
        return MaskFile(value)
    if kind == "permuted":
        raise InputError("permuted is no mask of its own: any mask can belong to another image", hint="assign permuted")
    known = ("zscore", "quantile", "jet", "random", "uniform", "quadrant", "file")
    hint = "file:masks.npy" if kind == "file" else nearest(kind, known)
    raise InputError(f"unknown mask {name!r}", hint=hint)


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `(N, h, w)` at the images' size, bicubic as pillow does it (antialiased, a = -0.5): `(N, H, W)`.

    Bicubic interpolation is linear and separable: one small matrix for rows and one for columns.
    """
    rows, columns = (
        _on_device(bicubic_matrix, maps.dtype, maps.device, source, target)
        for source, target in zip(maps.shape[1:], size, strict=True)
    )
    return rows @ maps @ columns.T


@lru_cache(maxsize=32)
def _on_device(table: Callable[..., Tensor], dtype: torch.dtype, device: torch.device, *arguments: int) -> Tensor:
    """A constant as a kernel wants it, moved once and not at every step."""
    return table(*arguments).to(dtype).to(device)


def bicubic_matrix(source: int, target: int) -> Tensor:
    """Pillow's bicubic interpolation from `source` to `target` points as a matrix, float64 `(target, source)`."""
    with torch.no_grad():
        unit = torch.eye(source, dtype=torch.float64)[:, None, :, None].repeat(1, 1, 1, 4)
        # four equal columns: with a single one torch 2.13's CPU kernel repeats the first row
        spread = torch.nn.functional.interpolate(unit, (target, 4), mode="bicubic", align_corners=False, antialias=True)
    return spread[:, 0, :, 0].T.contiguous()


def jet_table() -> Tensor:
    """Matplotlib's jet, float64 `(256, 3)`."""
    import numpy as np
    from matplotlib import colormaps

    return torch.from_numpy(np.array(colormaps["jet"](np.arange(256))[:, :3]))
