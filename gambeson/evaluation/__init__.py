"""Measuring robustness: attacks by name, outcomes per example, intervals."""

from gambeson.evaluation.corruption import CorruptionReport, evaluate_corruptions
from gambeson.evaluation.evaluate import ATTACKS, Report, evaluate, parse_attack
from gambeson.evaluation.statistics import Interval, mcnemar, wilson

__all__ = [
    "ATTACKS",
    "CorruptionReport",
    "Interval",
    "Report",
    "evaluate",
    "evaluate_corruptions",
    "mcnemar",
    "parse_attack",
    "wilson",
]
