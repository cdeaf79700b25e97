"""What an examination found: one finding per check, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gambeson.core.errors import UnhealthyError

Level = Literal["pass", "warn", "error"]
"""Sound; to be known beside the number; the number would be wrong."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Name of the check.
        level: `"pass"`, `"warn"`, or `"error"` where an evaluation's number would be wrong.
        message: What was found, one sentence.
        hint: What to do about it, or None.
        evidence: What was measured, for JSON.
    """

    check: str
    level: Level
    message: str
    hint: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}; {self.hint}"


@dataclass(frozen=True)
class Diagnosis:
    """What an examination found.

    Attributes:
        findings: One per check that was made, in order.
        n: Images that the model was run on; 0 where what had been found before forbade it.
    """

    findings: tuple[Finding, ...]
    n: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that would make the number wrong."""
        return tuple(f for f in self.findings if f.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that one should know."""
        return tuple(f for f in self.findings if f.level == "warn")

    def of(self, check: str) -> Finding | None:
        """The finding of a check, None where it was not made."""
        return next((f for f in self.findings if f.check == check), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "examined": self.n,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [asdict(f) for f in self.findings],
        }


def require_healthy(diagnosis: Diagnosis, *, apart_from: Collection[str] = ()) -> None:
    """Refuse to go on where a number would be wrong; all errors are said at once.

    Args:
        diagnosis: From `examine`.
        apart_from: Checks whose errors the caller deals with.

    Raises:
        UnhealthyError: There are errors.
    """
    errors = [f for f in diagnosis.errors if f.check not in apart_from]
    hints = dict.fromkeys(f.hint for f in errors if f.hint)
    if errors:
        raise UnhealthyError("; ".join(f.message for f in errors), hint="; ".join(hints) or None)


def finite_number(value: float) -> float | None:
    """A number for JSON, which has no infinity: None instead."""
    return value if math.isfinite(value) else None
