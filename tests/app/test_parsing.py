"""Words to values: command line, YAML, and what is said of words that are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from app.helpers import Cli, args_of, assert_error
from gambeson.app.options import EpsOptions
from gambeson.app.parsing import peek, require_positive, split_words
from gambeson.core.errors import InputError
from gambeson.methods import METHODS

Plan = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("words", "eps"),
    [
        (["--eps", "8/255"], 8 / 255),
        (["--eps=8/255"], 8 / 255),
        (["--eps", "16 / 255"], 16 / 255),
        (["--eps", "0.1"], 0.1),
        (["--eps=.1"], 0.1),
        (["--eps", "1"], 1.0),
        (["--eps", "1e-2"], 0.01),
    ],
)
def test_a_budget_is_a_fraction_or_a_number(words: list[str], eps: float, planned: Plan) -> None:
    assert args_of(planned("n-lap", *words))["eps"] == eps


def test_without_a_budget_the_data_set_decides(planned: Plan) -> None:
    assert args_of(planned("n-lap"))["eps"] is None


@pytest.mark.parametrize(
    ("words", "ascent"),
    [
        ([], False),
        (["--ascent"], True),
        (["--ascent", "true"], True),
        (["--ascent=true"], True),
        (["--no-ascent"], False),
        (["--ascent", "false"], False),
        (["--ascent", "--no-ascent"], False),
        (["--no_ascent", "--ascent"], True),
        (["--ascent", "--seed", "3"], True),
    ],
)
def test_flags(words: list[str], ascent: bool, planned: Plan) -> None:
    assert args_of(planned("n-lap", *words))["ascent"] is ascent


@pytest.mark.parametrize("spelling", ["--extra-backward", "--extra_backward", "--extra-backward=true"])
def test_hyphens_and_underscores_are_the_same_in_options(spelling: str, planned: Plan) -> None:
    assert args_of(planned("n-lap", spelling))["extra_backward"] is True


@pytest.mark.parametrize(
    ("written", "name"),
    [("n-lap", "n-lap"), ("n_lap", "n-lap"), ("N-LAP", "n-lap"), ("v-fgsm", "fgsm"), ("madry", "pgd-at")],
)
def test_methods_have_aliases_and_spellings(written: str, name: str, planned: Plan) -> None:
    assert planned(written)["method"]["name"] == name


@pytest.mark.parametrize(
    "words",
    [
        ["n-lap", "--seed", "3", "--ascent", "--batch-size", "64"],
        ["--seed", "3", "n-lap", "--ascent", "--batch-size", "64"],
        ["--seed", "3", "--ascent", "--batch-size", "64", "n-lap"],
        ["--ascent", "n_lap", "--seed=3", "--batch_size=64"],
    ],
)
def test_the_method_may_stand_anywhere(words: list[str], planned: Plan) -> None:
    call = planned(*words)

    assert call["method"]["name"] == "n-lap"
    assert args_of(call)["ascent"] is True
    assert (call["settings"]["seed"], call["settings"]["batch_size"]) == (3, 64)


def test_an_attack_before_the_method_is_not_the_method(planned: Plan) -> None:
    call = planned("--attack", "fgsm", "n-lap")

    assert (call["method"]["name"], call["attack"]) == ("n-lap", "fgsm")


def test_an_attack_beside_a_recipe_is_not_the_method(planned: Plan) -> None:
    call = planned("--config", "lap/cifar10-n-eps8", "--attack", "fgsm")

    assert (call["method"]["name"], call["attack"]) == ("n-lap", "fgsm")


def test_a_method_may_also_be_the_name_of_the_run(planned: Plan) -> None:
    assert planned("--run", "trades", "n-lap")["method"]["name"] == "n-lap"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--epochs", "ten"], ["--epochs needs a whole number", "'ten'"]),
        (["--epochs", "1.5"], ["--epochs needs a whole number", "'1.5'"]),
        (["--epochs", "--seed", "1"], ["--epochs needs a value"]),
        (["--epochs"], ["--epochs needs a value"]),
        (["--batch_size"], ["--batch_size needs a value"]),
        (["--lr", "fast"], ["--lr needs a number", "'fast'"]),
        (["--eps", "8/x"], ["--eps needs a number or a fraction", "'8/x'"]),
        (["--eps", "eight"], ["--eps needs a number or a fraction", "'eight'"]),
        (["--ascent=maybe"], ["--ascent needs true or false", "'maybe'"]),
        (["--direction", "up"], ["--direction needs one of optimizer, gradient, random, got 'up'"]),
        (
            ["--schedule", "cylic"],
            ["--schedule needs one of cyclic, piecewise, cosine, constant, got 'cylic'\nhint: did you mean cyclic?\n"],
        ),
        (["--on-overfitting", "panic"], ["--on-overfitting needs one of warn, stop, rollback, got 'panic'"]),
        (["trades"], ["train takes one method, got n-lap trades", "hint: options begin with --"]),
        (["and", "more"], ["train takes one method, got n-lap and more"]),
        (["--ascent", "yes"], ["train takes one method, got n-lap yes"]),
    ],
    ids=" ".join,
)
def test_a_value_of_another_kind_is_wrong_usage(words: list[str], fragments: list[str], cli: Cli) -> None:
    assert_error(cli("train", "n-lap", *words), 2, *fragments)


def test_choices_with_a_default_of_their_own_are_named(cli: Cli) -> None:
    said = "--assign needs one of own, permuted, release, got 'permuetd'\nhint: did you mean permuted?\n"
    assert_error(cli("train", "part", "--assign", "permuetd"), 2, said)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "n-lap", "--train-size", "many"],
        ["train", "n-lap", "--ema", "many"],
        ["train", "n-lap", "--pad", "many"],
        ["evaluate", "r", "--eps", "many"],
    ],
    ids=" ".join,
)
def test_an_optional_value_of_another_kind_is_wrong_usage(words: list[str], cli: Cli) -> None:
    assert_error(cli(*words), 2, f"{words[-2]} needs ", "'many'")


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["train", "n-lap", "--epocs", "3"], "--epochs"),
        (["train", "n-lap", "--bacth_size=3"], "--batch-size"),
        (["evaluate", "r", "--atack", "fgsm"], "--attack"),
        (["resume", "r", "--devcie", "cpu"], "--device"),
        (["runs", "list", "--rot", "x"], "--root"),
    ],
    ids=" ".join,
)
def test_an_unknown_option_names_the_nearest(words: list[str], near: str, cli: Cli) -> None:
    assert_error(cli(*words), 2, "unknown option --", f"did you mean {near}")


def test_an_option_of_another_method_is_unknown(cli: Cli) -> None:
    result = cli("train", "trades", "--extra-backward")

    assert result.code == 2
    assert "unknown option --extra-backward" in result.err


@pytest.mark.parametrize(
    ("written", "near"), [("n-lpa", "n-lap"), ("tradse", "trades"), ("free_ta", "free-at"), ("pdg-at", "pgd-at")]
)
def test_an_unknown_method_names_the_nearest(written: str, near: str, cli: Cli) -> None:
    assert_error(cli("train", written), 2, f"unknown method {written!r}", f"did you mean {near}")


def test_a_method_like_none_names_all(cli: Cli) -> None:
    assert_error(cli("train", "xyzzy"), 2, "'xyzzy'", *METHODS)


def test_no_method_is_wrong_usage(cli: Cli) -> None:
    assert_error(cli("train"), 2, "which method?", *METHODS)
    assert_error(cli("train", "--epochs", "3"), 2, "which method?")


def test_an_unknown_method_after_an_option_names_the_nearest(cli: Cli) -> None:
    assert "n-lap" in cli("train", "--epochs", "3", "n-lpa").err.split("hint: did you mean")[1]


@pytest.mark.parametrize(("word", "flip"), [("--flip", True), ("--no-flip", False)])
def test_mirroring_is_a_flag_like_the_others(word: str, flip: bool, planned: Plan) -> None:
    assert planned("n-lap", word)["settings"]["flip"] is flip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["n-lap", "--epochs", "3"], ["n-lap"]),
        (["--epochs", "3", "n-lap"], ["n-lap"]),
        (["--epochs=3", "n-lap"], ["n-lap"]),
        (["--ascent", "N_LAP"], ["N_LAP"]),
        (["--ascent", "true", "N_LAP"], ["N_LAP"]),
        (["--no-ascent", "N_LAP"], ["N_LAP"]),
        (["typo"], ["typo"]),
        (["--run", "n-lap"], []),
        (["--eps", "-0.1", "n-lap"], ["n-lap"]),
        (["--eps", "-8/255", "n-lap"], ["n-lap"]),
        (["--attack", "fgsm", "a", "b"], ["a", "b"]),
        ([], []),
    ],
)
def test_split_words(args: list[str], words: list[str]) -> None:
    found, rest = split_words(args, {"ascent"})
    assert found == words
    assert sorted(found + rest) == sorted(args)


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["--data", "mnist"], "mnist"),
        (["--data=mnist"], "mnist"),
        (["--data=a_b=c"], "a_b=c"),
        (["--data", "mnist", "--data", "svhn"], "svhn"),
        (["--data"], None),
        (["--data-dir", "x"], None),
        (["--data_dir", "x"], None),
    ],
)
def test_peek(args: list[str], found: str | None) -> None:
    assert peek(args, "data") == found


def test_numbers_below_one_are_refused_by_their_options_name() -> None:
    require_positive(EpsOptions(test_size=None, batch_size=1), "test_size", "batch_size")
    for name, value in (("batch_size", 0), ("test_size", -3)):
        with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')} must be at least 1, got {value}$"):
            require_positive(EpsOptions(**{name: value}), "test_size", "batch_size")
