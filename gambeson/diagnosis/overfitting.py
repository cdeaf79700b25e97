"""Overfitting of an adversarial training, from its history: catastrophic (a collapse to one step) and robust (slow)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gambeson.core.errors import InputError, RunError
from gambeson.diagnosis.class_gaps import ClassGaps, Paired, class_gaps, compare_best_and_final, strongest_common
from gambeson.diagnosis.collapse import Collapse, Detection, Look, detect, find_collapse, read_looks
from gambeson.diagnosis.validations import RobustOverfitting, Validation, best_and_last, read_lines
from gambeson.evaluation.evaluate import Report


@dataclass(frozen=True, eq=False)
class Overfitting:
    """What the history of a training says of overfitting.

    Attributes:
        looks: The sentinel's, in order; empty where none watched.
        collapse: The first collapse, or None.
        detections: What other detectors say of the same looks.
        rollbacks: How often the training went back to healthy weights.
        training: Its accuracy on its own images, augmented and attacked as it trains, line by line.
        validations: In order; empty where nothing was held out.
        robust: Best and last validation, or None.
        paired: Best against last weights on the test images, or None.
        classes: Accuracies by class, by checkpoint.
        complete: Whether the training has come to its end.
        damaged: Rows of metrics that were left out.
    """

    looks: tuple[Look, ...]
    collapse: Collapse | None
    detections: tuple[Detection, ...]
    rollbacks: int
    training: tuple[Validation, ...]
    validations: tuple[Validation, ...]
    robust: RobustOverfitting | None
    paired: Paired | None
    classes: Mapping[str, ClassGaps]
    complete: bool
    damaged: int

    def sentence(self) -> str:
        """What happened, in a few sentences."""
        parts = [self._collapse(), self._signs(), self._robust(), self._classes()]
        said = [] if self.complete else ["the training is not complete: this is how it stands"]
        said += [part for part in parts if part]
        return " ".join(f"{part[0].upper()}{part[1:]}." for part in said)

    def _collapse(self) -> str:
        if not self.looks:
            return "no sentinel watched: of a collapse nothing is known"
        if self.collapse is None:
            gap, look = max(((look.gap, look) for look in self.looks), key=lambda pair: pair[0])
            said = f"no catastrophic overfitting in {len(self.looks)} looks"
            return f"{said}: FGSM at most {100 * gap:.1f} points above PGD-10 ({_at(look)})"
        found = self.collapse
        since = f"between {_at(found.healthy)} and" if found.healthy else "by the first look,"
        said = f"catastrophic overfitting {since} {_at(found.look)}"
        said += f": then {_accuracies(found.look)}"
        if found.recovered:
            said += f"; healthy again from {_at(found.recovered)} on"
        else:
            said += f", and at the last look {_accuracies(self.looks[-1])}"
        return said + (f" ({self.rollbacks} rollback{'s' * (self.rollbacks > 1)})" if self.rollbacks else "")

    def _signs(self) -> str:
        """Which published signs agree with the sentinel, where it saw a collapse."""
        if self.collapse is None:
            return ""
        signs = {one.detector: one.look for one in self.detections if one.source != "ours" and one.judged}
        seen = [f"{SIGNS[name]} at step {look.step}" for name, look in signs.items() if name in SIGNS and look]
        missing = [SIGNS[name] for name, look in signs.items() if name in SIGNS and look is None]
        return "; ".join([*seen, *([f"not seen: {', '.join(missing)}"] if missing else [])])

    def _robust(self) -> str:
        if self.robust is None:
            return "no validation under attack: of robust overfitting nothing is known"
        best, last = self.robust.best, self.robust.last
        if best.robust == last.robust:
            said = f"validation PGD-10 is as high at the end as ever ({_percent(last.robust)})"
        else:
            said = f"validation PGD-10 was highest at epoch {best.epoch:.3g} ({_percent(best.robust)}), at the end"
            said += f" {100 * self.robust.drop:.1f} points lower ({_percent(last.robust)})"
        return said + (f"; {self._test(self.paired)}" if self.paired else "")

    def _test(self, paired: Paired) -> str:
        gain = paired.difference
        verdict = "which may be chance"
        if gain.low > 0:
            verdict = "more than chance" + ("" if self.collapse else ": robust overfitting")
        elif gain.high < 0:
            verdict = "the last weights are better"
        ends = f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        return f"on test, under {paired.attack}, best minus last is {100 * gain.value:+.1f} points {ends}, {verdict}"

    def _classes(self) -> str:
        if not self.classes:
            return ""
        name, found = list(self.classes.items())[-1]
        worst, widest = found.worst, found.widest
        said = f"under {found.attack} the {name} weights are worst on class {worst.name} ({worst.robust})"
        return f"{said}; class {widest.name} loses most to the attack, {100 * widest.gap.value:.1f} points"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; series are lists of one length, with None where a number is missing."""
        looks = _columns(self.looks, ("step", "epoch", "fgsm", "pgd", "gap", "aae", "alignment", "collapsed"))
        line = ("step", "epoch", "clean", "robust")
        return {
            "sentence": self.sentence(),
            "complete": self.complete,
            "damaged_rows": self.damaged,
            "collapse": self.collapse.to_dict() if self.collapse else None,
            "rollbacks": self.rollbacks,
            "detections": [one.to_dict() for one in self.detections],
            "looks": looks,
            "training": _columns(self.training, line),
            "validation": _columns(self.validations, line),
            "robust_overfitting": self.robust.to_dict() if self.robust else None,
            "best_against_final": self.paired.to_dict() if self.paired else None,
            "classes": {name: gaps.to_dict() for name, gaps in self.classes.items()},
        }


def diagnose_overfitting(
    rows: Iterable[Mapping[str, Any]], *, reports: Mapping[str, Report] | None = None, complete: bool = True
) -> Overfitting:
    """Read from the history of a training whether, when and how it overfitted.

    Catastrophic overfitting: the sentinel's looks, the first with the verdict, and what other published signs of it
    say (`gambeson.diagnosis.collapse.DETECTORS`). Robust overfitting: how far the last validation under PGD-10 lies
    below the best one, and, with the outcomes of both checkpoints on the same test images, whether that is more than
    chance.

    Args:
        rows: Metrics of a run, as `Run.rows` gives them.
        reports: Evaluations of the checkpoints `best` and `final` on the test images. Of the attacks that they share
            the strongest is taken.
        complete: Whether the training has come to its end.

    Returns:
        What was found.

    Raises:
        InputError: Reports of other names.
        RunError: The metrics hold no look, no validation and no line of training.

    Examples:
        >>> row = {"step": 50, "epoch": 1.0, "probe/fgsm_acc": 0.9, "probe/pgd10_acc": 0.1}
        >>> found = diagnose_overfitting([{**row, "event": "catastrophic overfitting"}])
        >>> found.collapse.look.step, found.collapse.healthy, found.robust
        (50, None, None)

    References:
        Rice, Wong, Kolter, "Overfitting in adversarially robust deep learning", ICML 2020,
        https://arxiv.org/abs/2002.11569 (robust overfitting, best minus last); for the other kind see the detectors.
    """
    rows, reports = list(rows), dict(sorted((reports or {}).items()))
    if unknown := [name for name in reports if name not in ("best", "final")]:
        raise InputError(f"reports are of best and final, got {', '.join(unknown)}")
    looks, damaged = read_looks(rows)
    validations, wrong = read_lines(rows, "val/clean_acc", "val/pgd10_acc")
    training, more = read_lines(rows, "train/clean_acc", "train/adv_acc")
    if not looks and not validations and not training:
        raise RunError("the metrics hold no look of a sentinel, no validation and no line of training")
    attack = strongest_common(reports)
    return Overfitting(
        looks=looks,
        collapse=find_collapse(looks),
        detections=detect(looks),
        rollbacks=sum(str(row.get("event")).startswith("rollback") for row in rows),
        training=training,
        validations=validations,
        robust=best_and_last(validations),
        paired=compare_best_and_final(reports, attack) if attack else None,
        classes={name: class_gaps(report, attack) for name, report in reports.items()} if attack else {},
        complete=complete,
        damaged=damaged + wrong + more,
    )


def _columns(rows: Sequence[Any], names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in rows] for name in names}


SIGNS = {
    "wong": "a sudden fall of PGD-10",
    "alignment": "a sudden fall of gradient alignment",
    "aae": "abnormal adversarial examples",
}
"""What detectors other than the sentinel's own look at, in words."""


def _accuracies(look: Look) -> str:
    return f"FGSM {_percent(look.fgsm)}, PGD-10 {_percent(look.pgd)}"


def _percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.1f} %"


def _at(look: Look) -> str:
    return f"step {look.step} (epoch {look.epoch:.3g})"
