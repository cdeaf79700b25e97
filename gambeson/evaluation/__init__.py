"""Measuring robustness: attacks by name, AutoAttack, budgets, intervals and tests, and checks before."""

from gambeson.evaluation.autoattack import AutoAttackReport, Stage, autoattack, state_key
from gambeson.evaluation.corruption import CorruptionReport, evaluate_corruptions
from gambeson.evaluation.curve import Curve, minimal_norms, robust_curve
from gambeson.evaluation.doctor import CHECKS, examine
from gambeson.evaluation.ensembles import ENSEMBLES, SEARCHES, create_ensemble, ensemble_of
from gambeson.evaluation.evaluate import ATTACKS, Report, evaluate, parse_attack, require_attack
from gambeson.evaluation.finding import Diagnosis, Finding, require_healthy
from gambeson.evaluation.grid import parse_budgets
from gambeson.evaluation.ledger import Entry, Ledger
from gambeson.evaluation.pace import Pace
from gambeson.evaluation.resampling import bootstrap, bootstrap_runs
from gambeson.evaluation.statistics import Interval, holm, mcnemar, paired_difference, wilson

__all__ = [
    "ATTACKS",
    "CHECKS",
    "ENSEMBLES",
    "SEARCHES",
    "AutoAttackReport",
    "CorruptionReport",
    "Curve",
    "Diagnosis",
    "Entry",
    "Finding",
    "Interval",
    "Ledger",
    "Pace",
    "Report",
    "Stage",
    "autoattack",
    "bootstrap",
    "bootstrap_runs",
    "create_ensemble",
    "ensemble_of",
    "evaluate",
    "evaluate_corruptions",
    "examine",
    "holm",
    "mcnemar",
    "minimal_norms",
    "paired_difference",
    "parse_attack",
    "parse_budgets",
    "require_attack",
    "require_healthy",
    "robust_curve",
    "state_key",
    "wilson",
]
