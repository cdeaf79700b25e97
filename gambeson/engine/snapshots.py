"""Snapshots: the light checkpoints that a training keeps, over its course and around the first collapse."""

from __future__ import annotations

from typing import Any

from gambeson.engine.run import Run


class Snapshots:
    """Which steps of a training have a checkpoint `snapshot-STEP`, the weights right after that step.

    They are the ends of the epochs `epochs * k // count`, k = 1 to `count`, and, under the sentinel, the last healthy
    look before the first collapse and the first collapsed look. Which of them those two are is in the metrics: the
    first row with the event `catastrophic overfitting`, and the look before it. Until a collapse comes the last healthy
    look has its snapshot too; it goes when a later one has come, and at the end of a training without a collapse.

    A rollback changes the weights of a step after its snapshot was taken.

    Args:
        count: How many over the course; 0 keeps none at all.
        epochs: Of the training.
        steps_per_epoch: Its steps per epoch.

    Examples:
        >>> found = Snapshots(2, epochs=5, steps_per_epoch=10)
        >>> found.due(20), found.due(30), found.due(50)
        (True, False, True)
    """

    def __init__(self, count: int, epochs: int, steps_per_epoch: int) -> None:
        self.total = epochs * steps_per_epoch
        self.course = frozenset(epochs * k // count * steps_per_epoch for k in range(1, count + 1))
        self.healthy: int | None = None
        self.collapsed: int | None = None

    def due(self, step: int) -> bool:
        """Whether a step of the course is one to keep."""
        return step in self.course

    def watch(self, step: int, collapsed: bool) -> bool:
        """Whether the weights that the sentinel has just looked at are to be kept; remembers the verdict."""
        if not self.course or self.collapsed is not None:
            return False
        if collapsed:
            self.collapsed = step
        else:
            self.healthy = step
        return True

    def kept(self, step: int) -> frozenset[int]:
        """The steps whose snapshots belong to a training that has come to `step`."""
        around = {self.healthy, self.collapsed}
        if self.collapsed is None and step >= self.total:
            around = set()
        return frozenset(one for one in {*self.course, *around} if one is not None and one <= step)

    def prune(self, run: Run, step: int) -> None:
        """Delete the snapshots that do not belong to a training that has come to `step`, if it keeps any."""
        if not self.course:
            return
        kept = self.kept(step)
        for name, at in run.snapshots().items():
            if at not in kept:
                run.checkpoint(name).unlink()

    def state_dict(self) -> dict[str, Any]:
        """What was seen."""
        return {"healthy": self.healthy, "collapsed": self.collapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.healthy, self.collapsed = state["healthy"], state["collapsed"]
