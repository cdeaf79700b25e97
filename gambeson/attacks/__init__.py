"""Attacks: the one projected ascent loop with FGSM, PGD and fixed-step MMA as settings, and Auto-PGD."""

from gambeson.attacks.apgd import Ascent, apgd
from gambeson.attacks.attack import Attack
from gambeson.attacks.margin import MMA, MarginAPGD, mm3, mm9, mm_plus
from gambeson.attacks.pgd import PGD, Plain, Unanimous, ZeroSmall, fgsm
from gambeson.attacks.starts import Boundary, Gaussian, Uniform, Zero

__all__ = [
    "MMA",
    "PGD",
    "Ascent",
    "Attack",
    "Boundary",
    "Gaussian",
    "MarginAPGD",
    "Plain",
    "Unanimous",
    "Uniform",
    "Zero",
    "ZeroSmall",
    "apgd",
    "fgsm",
    "mm3",
    "mm9",
    "mm_plus",
]
