"""Parts of training methods: objectives, weight perturbations, penalties, averaging."""

from gambeson.parts.averaging import EMA
from gambeson.parts.memory import CarriedPerturbation
from gambeson.parts.objectives import CrossEntropy, Mart, Objective, Score, SquaredError, Trades
from gambeson.parts.penalties import GradientAlignment
from gambeson.parts.weight_perturbation import LayerAware, Relative, WeightPerturbation

__all__ = [
    "EMA",
    "CarriedPerturbation",
    "CrossEntropy",
    "GradientAlignment",
    "LayerAware",
    "Mart",
    "Objective",
    "Relative",
    "Score",
    "SquaredError",
    "Trades",
    "WeightPerturbation",
]
