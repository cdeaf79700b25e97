"""Errors that say what was wrong, what is allowed and what to do; the command line prints them without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import ClassVar


class GambesonError(Exception):
    """A mistake or a fault that the user can act on.

    Args:
        message: One sentence: what was wrong, what came, what is allowed.
        hint: What to do about it, or None.

    Attributes:
        exit_code: With what the command line ends: 2 where what was written is wrong, 1 for all else.

    Examples:
        >>> print(GambesonError("eps must be in (0, 1], got 8", hint="eight grey levels are eps=8/255"))
        eps must be in (0, 1], got 8
        hint: eight grey levels are eps=8/255
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\nhint: {self.hint}"


class GambesonWarning(UserWarning):
    """Something that a user should know and need not act on; the command line prints it in one line."""


class InputError(GambesonError, ValueError):
    """What was written is wrong: an unknown name, a value outside what is allowed, settings that do not go together."""

    exit_code = 2


class UnhealthyError(InputError):
    """A model or its data would make the number of an evaluation wrong."""

    exit_code = 1


class FileError(GambesonError):
    """A file or folder that was named is missing, holds something else, or cannot be read or written."""


class DataError(GambesonError):
    """A data set is missing, truncated, corrupt or does not fit the call."""


class CheckpointError(GambesonError):
    """A checkpoint is missing, truncated, or of another model, method or version."""


class RunError(GambesonError):
    """A run directory cannot be created, read or continued."""


class DivergenceError(GambesonError):
    """Training met a NaN or infinite loss, or collapsed, and stopped."""


class ProcessError(GambesonError):
    """Another process of the same command has ended, or does not answer."""


def require_known(what: str, value: object, known: Collection[object]) -> None:
    """Refuse a `value` that is not among the `known` ones.

    Raises:
        InputError: It is not; the hint lists them.

    Examples:
        >>> require_known("fill", "edge", ("zero", "reflect"))
        Traceback (most recent call last):
        gambeson.core.errors.InputError: unknown fill 'edge'
        hint: known: zero, reflect
    """
    if value not in known:
        raise InputError(f"unknown {what} {value!r}", hint=f"known: {', '.join(map(str, known))}")


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """A hint that names the known names closest to `name`, or all of them where none is close.

    Examples:
        >>> nearest("n-fgms", ["n-fgsm", "trades"])
        'did you mean n-fgsm?'
        >>> nearest("zzz", ["trades", "mart"])
        'known: mart, trades'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(names)}"
