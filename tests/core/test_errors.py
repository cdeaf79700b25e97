import pytest

from gambeson.app.parsing import UsageError
from gambeson.core.errors import (
    CheckpointError,
    DataError,
    DivergenceError,
    FileError,
    GambesonError,
    InputError,
    ProcessError,
    RunError,
    UnhealthyError,
    nearest,
)


def test_the_hint_is_printed_below_the_message() -> None:
    error = GambesonError("eps is 8", hint="write 8/255")
    assert str(error) == "eps is 8\nhint: write 8/255"
    assert (error.message, error.hint) == ("eps is 8", "write 8/255")
    assert str(GambesonError("eps is 8")) == "eps is 8"


@pytest.mark.parametrize("kind", [CheckpointError, DataError, DivergenceError, FileError, InputError, RunError])
def test_every_error_is_caught_as_one(kind: type[GambesonError]) -> None:
    assert issubclass(kind, GambesonError)


def test_an_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_what_was_written_wrongly_ends_with_2_and_what_fails_with_1() -> None:
    failures = (CheckpointError, DataError, DivergenceError, FileError, ProcessError, RunError, UnhealthyError)
    assert {kind.exit_code for kind in failures} == {GambesonError.exit_code} == {1}
    assert {InputError.exit_code, UsageError.exit_code} == {2}


def test_nearest_names_close_names_best_first() -> None:
    assert nearest("trade", ["mart", "trades-awp", "trades"]) == "did you mean trades or trades-awp?"


def test_nearest_lists_everything_sorted_where_nothing_is_close() -> None:
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_nearest_stops_at_count() -> None:
    assert nearest("name", ["name1", "name2", "name3", "name4"], count=2).count(" or ") == 1
