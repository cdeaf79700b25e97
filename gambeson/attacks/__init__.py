"""Attacks: the one projected ascent loop, of which FGSM, RS-FGSM, N-FGSM and PGD are settings."""

from gambeson.attacks.pgd import PGD, Gaussian, Plain, Unanimous, Uniform, Zero, ZeroSmall, fgsm

__all__ = ["PGD", "Gaussian", "Plain", "Unanimous", "Uniform", "Zero", "ZeroSmall", "fgsm"]
