"""Defaults that depend on the data set: what `gambeson train METHOD --data NAME` uses where nothing else is said."""

from __future__ import annotations

from typing import Any

TRAINING: dict[str, dict[str, Any]] = {
    "digits": {"model": "small-cnn", "epochs": 40, "lr": 0.1, "threads": 1},
    "mnist": {"model": "small-cnn", "epochs": 10, "lr": 0.1},
    "fashion-mnist": {"model": "small-cnn", "epochs": 15, "lr": 0.1},
}
"""Settings by data set; others keep the signature's: the single-step papers' 30 epochs, cyclic to 0.2."""

METHOD: dict[tuple[str, str], dict[str, Any]] = {
    ("digits", "n-lap"): {"beta": 0.005},
    ("digits", "trades-awp"): {"warmup": 5},
    ("digits", "mart-awp"): {"warmup": 5},
}
"""Method arguments by data set and method; LAP's betas are published for CIFAR-10 only."""
