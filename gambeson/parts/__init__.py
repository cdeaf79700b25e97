"""Parts of training methods: objectives, weight perturbations, budgets, penalties, averaging."""

from gambeson.parts.averaging import EMA
from gambeson.parts.budgets import PixelBudget
from gambeson.parts.cam import CAM
from gambeson.parts.masks import Jet, MaskFile, Quadrant, Quantile, Random, ZScore, create_mask
from gambeson.parts.memory import CarriedPerturbation
from gambeson.parts.objectives import CrossEntropy, Mart, Objective, Score, SquaredError, Trades
from gambeson.parts.penalties import GradientAlignment
from gambeson.parts.weight_perturbation import LayerAware, Relative, WeightPerturbation

__all__ = [
    "CAM",
    "EMA",
    "CarriedPerturbation",
    "CrossEntropy",
    "GradientAlignment",
    "Jet",
    "LayerAware",
    "Mart",
    "MaskFile",
    "Objective",
    "PixelBudget",
    "Quadrant",
    "Quantile",
    "Random",
    "Relative",
    "Score",
    "SquaredError",
    "Trades",
    "WeightPerturbation",
    "ZScore",
    "create_mask",
]
