"""What a severity means: the parameters of CIFAR-10-C and of Tiny-ImageNet-C, severities 1 to 5."""

from __future__ import annotations

from typing import Literal

from gambeson.core.errors import require_known

Parameters = Literal["cifar", "tiny"]
Row = tuple[float, ...]

_ZOOM = ((1.06,), (1.11,), (1.16,), (1.21,), (1.26,))
_SNOW = (
    (0.1, 0.2, 1, 0.6, 8, 3),
    (0.1, 0.2, 1, 0.5, 10, 4),
    (0.15, 0.3, 1.75, 0.55, 10, 4),
    (0.25, 0.3, 2.25, 0.6, 12, 6),
    (0.3, 0.3, 1.25, 0.65, 14, 12),
)


def _numbers(*values: float) -> tuple[Row, ...]:
    return tuple((value,) for value in values)


def _snow(*alphas: float) -> tuple[Row, ...]:
    return tuple((*row, alpha) for row, alpha in zip(_SNOW, alphas, strict=True))


CIFAR: dict[str, tuple[Row, ...]] = {
    "gaussian_noise": _numbers(0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _numbers(500, 250, 100, 75, 50),
    "impulse_noise": _numbers(0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": _ZOOM,
    "snow": _snow(0.95, 0.9, 0.9, 0.85, 0.8),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": _numbers(0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _numbers(0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    "pixelate": _numbers(0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _numbers(80, 65, 58, 50, 40),
    "speckle_noise": _numbers(0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": _numbers(0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
"""Of `make_cifar_c.py`. What the numbers are stands at each function; `elastic_transform` counts in image sides."""

TINY: dict[str, tuple[Row, ...]] = {
    "gaussian_noise": _numbers(0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": _numbers(250, 100, 50, 30, 15),
    "impulse_noise": _numbers(0.01, 0.02, 0.05, 0.08, 0.14),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": _ZOOM,
    "snow": _snow(0.8, 0.8, 0.7, 0.65, 0.6),
    "frost": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    "brightness": _numbers(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _numbers(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    "pixelate": _numbers(0.9, 0.8, 0.7, 0.6, 0.5),
    "jpeg_compression": _numbers(65, 58, 50, 40, 25),
    "speckle_noise": _numbers(0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": _numbers(0.5, 0.75, 1, 1.25, 1.5),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
}
"""Of `make_tinyimagenet_c.py`, for images of 64x64."""

TABLES: dict[str, dict[str, tuple[Row, ...]]] = {"cifar": CIFAR, "tiny": TINY}
"""Both by the name that `corrupt` takes."""


def table_name(size: int, parameters: str | None = None) -> str:
    """The table for images of `size` pixels: the one asked for, else CIFAR's up to 32 pixels and Tiny-ImageNet's above.

    Raises:
        InputError: Another name.

    Examples:
        >>> table_name(28), table_name(64), table_name(64, "cifar")
        ('cifar', 'tiny', 'cifar')
    """
    if parameters is None:
        return "cifar" if size <= 32 else "tiny"
    require_known("table of parameters", parameters, tuple(TABLES))
    return parameters
