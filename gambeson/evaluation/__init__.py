"""Measuring robustness: attacks by name, outcomes per example, intervals."""

from gambeson.evaluation.evaluate import ATTACKS, Report, evaluate, parse_attack
from gambeson.evaluation.statistics import Interval, mcnemar, wilson

__all__ = ["ATTACKS", "Interval", "Report", "evaluate", "mcnemar", "parse_attack", "wilson"]
