"""The corruptions by name, and the sets of them that the literature averages over."""

from __future__ import annotations

CORRUPTIONS: dict[str, str] = {
    "gaussian_noise": "normal noise of one spread on every value",
    "shot_noise": "Poisson noise, as of too few photons",
    "impulse_noise": "salt and pepper: single values become 0 or 255",
    "defocus_blur": "blur with a disk, as out of focus",
    "glass_blur": "neighbouring pixels change places, as through frosted glass",
    "motion_blur": "blur along a line of random direction",
    "zoom_blur": "mean of growing enlargements, as when driving towards it",
    "snow": "falling flakes, and a whitened image",
    "frost": "ice crystals of a photograph, or generated ones, laid over it",
    "fog": "a fractal haze",
    "brightness": "a larger HSV value",
    "contrast": "values drawn towards the image's mean colour",
    "elastic_transform": "a random affine map and a random field of displacements",
    "pixelate": "a smaller size and back, both by boxes",
    "jpeg_compression": "JPEG of low quality",
    "speckle_noise": "normal noise in proportion to the value",
    "gaussian_blur": "blur with a Gaussian",
    "spatter": "drops of water (severities 1 to 3) or mud (4 and 5)",
    "saturate": "HSV saturation, smaller (severities 1 and 2) or larger",
}
"""All 19 by name: the 15 of the benchmark in its order, then the 4 extra ones."""

SETS: dict[str, tuple[str, ...]] = {
    "standard15": tuple(CORRUPTIONS)[:15],
    "rift18": tuple(name for name in CORRUPTIONS if name != "glass_blur"),
    "all19": tuple(CORRUPTIONS),
}
"""`standard15`: the benchmark. `rift18`: those of RiFT's released code, all but glass blur. `all19`: all."""

SEVERITIES = (1, 2, 3, 4, 5)
"""How strong: 1 is mild, 5 is strong."""
