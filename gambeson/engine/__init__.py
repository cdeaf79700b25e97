"""The engine: one training step, schedules, checkpoints, runs and the loop that resumes to the bit."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.engine.checkpoint import load_checkpoint, save_checkpoint
    from gambeson.engine.interruption import Interrupted
    from gambeson.engine.optim import learning_rate
    from gambeson.engine.run import Run
    from gambeson.engine.sentinel import Sentinel
    from gambeson.engine.settings import Settings
    from gambeson.engine.step import robust_step
    from gambeson.engine.trainer import Trainer

__all__ = [
    "Interrupted",
    "Run",
    "Sentinel",
    "Settings",
    "Trainer",
    "learning_rate",
    "load_checkpoint",
    "robust_step",
    "save_checkpoint",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Interrupted": "gambeson.engine.interruption",
        "Run": "gambeson.engine.run",
        "Sentinel": "gambeson.engine.sentinel",
        "Settings": "gambeson.engine.settings",
        "Trainer": "gambeson.engine.trainer",
        "learning_rate": "gambeson.engine.optim",
        "load_checkpoint": "gambeson.engine.checkpoint",
        "robust_step": "gambeson.engine.step",
        "save_checkpoint": "gambeson.engine.checkpoint",
    },
)
