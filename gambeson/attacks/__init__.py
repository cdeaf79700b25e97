"""Attacks: the projected ascent loop with FGSM, PGD and fixed-step MMA as settings, Auto-PGD, and searches in slots."""

from gambeson.attacks.apgd import Ascent, AutoPGD, apgd
from gambeson.attacks.attack import Attack
from gambeson.attacks.margin import MMA, MarginAPGD, mm3, mm9, mm_plus
from gambeson.attacks.pgd import PGD, Plain, Unanimous, ZeroSmall, fgsm
from gambeson.attacks.search import Cost, Jobs, Retired, Search, hunt
from gambeson.attacks.starts import Boundary, Gaussian, Uniform, Zero

__all__ = [
    "MMA",
    "PGD",
    "Ascent",
    "Attack",
    "AutoPGD",
    "Boundary",
    "Cost",
    "Gaussian",
    "Jobs",
    "MarginAPGD",
    "Plain",
    "Retired",
    "Search",
    "Unanimous",
    "Uniform",
    "Zero",
    "ZeroSmall",
    "apgd",
    "fgsm",
    "hunt",
    "mm3",
    "mm9",
    "mm_plus",
]
