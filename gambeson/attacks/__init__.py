"""Attacks: one projected ascent loop with FGSM, PGD and MMA as settings; searches in slots; minimal norms."""

from gambeson.attacks.apgd import Ascent, AutoPGD, apgd
from gambeson.attacks.attack import Attack
from gambeson.attacks.decomposition import MD
from gambeson.attacks.fab import FAB, Nearest, fab_minimal
from gambeson.attacks.margin import MMA, MarginAPGD, mm3, mm9, mm_plus
from gambeson.attacks.minimal import Minimal, deepfool, minimal_eps
from gambeson.attacks.pgd import PGD, Plain, Unanimous, ZeroSmall, fgsm
from gambeson.attacks.search import Cost, Hunt, Jobs, Retired, Search, hunt
from gambeson.attacks.square import Square
from gambeson.attacks.starts import Boundary, Gaussian, Uniform, Zero

__all__ = [
    "FAB",
    "MD",
    "MMA",
    "PGD",
    "Ascent",
    "Attack",
    "AutoPGD",
    "Boundary",
    "Cost",
    "Gaussian",
    "Hunt",
    "Jobs",
    "MarginAPGD",
    "Minimal",
    "Nearest",
    "Plain",
    "Retired",
    "Search",
    "Square",
    "Unanimous",
    "Uniform",
    "Zero",
    "ZeroSmall",
    "apgd",
    "deepfool",
    "fab_minimal",
    "fgsm",
    "hunt",
    "minimal_eps",
    "mm3",
    "mm9",
    "mm_plus",
]
