"""Words to values: command line, YAML, and what is said of words that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.helpers import Cli, assert_error
from gambeson.app.parsing import peek, split_words
from gambeson.app.recipes import read_yaml, recipes_folder
from gambeson.core.errors import InputError
from gambeson.methods import METHODS

Plan = Callable[..., dict[str, Any]]


def args_of(call: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = call["method"]["args"]
    return found


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
        (["--epochs", "--seed", "1"], ["--epochs"]),
        (["--epochs"], ["--epochs"]),
        (["--lr", "fast"], ["--lr needs a number", "'fast'"]),
        (["--eps", "8/x"], ["--eps needs a number or a fraction", "'8/x'"]),
        (["--eps", "eight"], ["--eps needs a number or a fraction", "'eight'"]),
        (["--ascent=maybe"], ["--ascent needs true or false", "'maybe'"]),
        (["--direction", "up"], ["--direction needs one of", "'optimizer'", "'gradient'", "'random'", "'up'"]),
        (["--schedule", "cylic"], ["--schedule needs one of", "'cyclic'", "'cylic'"]),
        (["--on-overfitting", "panic"], ["--on-overfitting needs one of", "'warn'", "'stop'", "'rollback'"]),
        (["and", "more"], ["train takes one method", "and more"]),
        (["--ascent", "yes"], ["train takes one method", "yes"]),
    ],
    ids=" ".join,
)
def test_a_value_of_another_kind_is_wrong_usage(words: list[str], fragments: list[str], cli: Cli) -> None:
    assert_error(cli("train", "n-lap", *words), 2, *fragments)


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
    assert_error(cli("train", written), 1, f"unknown method {written!r}", f"did you mean {near}")


def test_a_method_like_none_names_all(cli: Cli) -> None:
    assert_error(cli("train", "xyzzy"), 1, "'xyzzy'", *METHODS)


def test_no_method_is_wrong_usage(cli: Cli) -> None:
    assert_error(cli("train"), 2, "which method?", *METHODS)
    assert_error(cli("train", "--epochs", "3"), 2, "which method?")


def test_an_unknown_method_after_an_option_names_the_nearest(cli: Cli) -> None:
    assert "n-lap" in cli("train", "--epochs", "3", "n-lpa").err.split("hint: did you mean")[1]


@pytest.mark.parametrize(("word", "flip"), [("--flip", True), ("--no-flip", False)])
def test_mirroring_is_a_flag_like_the_others(word: str, flip: bool, planned: Plan) -> None:
    assert planned("n-lap", word)["settings"]["flip"] is flip


# YAML


@pytest.fixture
def config(here: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        Path("mine.yaml").write_text(text)
        return "mine.yaml"

    return write


def test_a_recipe_is_read(config: Callable[[str], str], planned: Plan) -> None:
    text = "method: n-lap\neps: 8/255\nbatch-size: 64\nweight_decay: 1e-3\nascent: true\nmilestones: [0.2, 0.4]\n"
    text += "flip: null\nrun: null\nmodel: preact_resnet18\nwidth: 8\nattack: clean,fgsm\n"
    call = planned("--config", config(text))

    assert call["method"]["name"] == "n-lap"
    assert args_of(call)["eps"] == 8 / 255
    assert args_of(call)["ascent"] is True
    assert (call["settings"]["batch_size"], call["settings"]["weight_decay"]) == (64, 1e-3)
    assert call["settings"]["milestones"] == [0.2, 0.4]
    assert call["settings"]["flip"] is None
    assert call["model"] == {"name": "preact-resnet18", "width": 8}
    assert call["attack"] == "clean,fgsm"


def test_the_command_line_wins_over_the_recipe(config: Callable[[str], str], planned: Plan) -> None:
    file = config("method: n-lap\neps: 8/255\nepochs: 3\nseed: 4\nascent: true\n")
    call = planned("--epochs=5", f"--config={file}", "--eps", "0.3", "--no-ascent")

    assert (call["settings"]["epochs"], call["settings"]["seed"]) == (5, 4)
    assert (args_of(call)["eps"], args_of(call)["ascent"]) == (0.3, False)


def test_a_method_on_the_command_line_wins_over_the_recipe(config: Callable[[str], str], planned: Plan) -> None:
    call = planned("r-lap", "--config", config("method: n-lap\nbeta: 0.5\n"))

    assert (call["method"]["name"], args_of(call)["beta"]) == ("r-lap", 0.5)


def test_the_recipe_wins_over_the_presets_of_its_data(config: Callable[[str], str], planned: Plan) -> None:
    call = planned("--config", config("method: n-lap\ndata: mnist\nlr: 0.3\n"))

    assert (call["data"]["name"], call["settings"]["lr"], call["settings"]["epochs"]) == ("mnist", 0.3, 10)


@pytest.mark.parametrize(
    ("text", "code", "fragments"),
    [
        ("method: n-lap\nbtea: 1\n", 2, ["mine.yaml", "'btea'", "did you mean beta"]),
        ("method: n-lap\nsteps: 1\n", 2, ["mine.yaml", "'steps'"]),
        ("method: n-lpa\n", 1, ["'n-lpa'", "did you mean n-lap"]),
        ("eps: 8/255\n", 2, ["which method?"]),
        ("a: [1\n", 1, ["mine.yaml is not YAML", "line 1"]),
        ("- n-lap\n", 1, ["mine.yaml must hold settings"]),
        ("n-lap\n", 1, ["mine.yaml must hold settings"]),
        ("", 1, ["mine.yaml must hold settings"]),
        ("method: n-lap\nepochs: many\n", 2, ["--epochs needs a whole number", "'many'"]),
        ("method: n-lap\nepochs: {a: 1}\n", 2, ["--epochs needs a whole number"]),
        ("method: n-lap\neps: 8/0\n", 1, ["eps must be a number or a fraction", "'8/0'"]),
    ],
)
def test_a_recipe_that_is_none(
    text: str, code: int, fragments: list[str], config: Callable[[str], str], cli: Cli
) -> None:
    assert_error(cli("train", "--config", config(text)), code, *fragments)


def test_a_setting_whose_name_is_a_number(config: Callable[[str], str], cli: Cli) -> None:
    assert_error(cli("train", "--config", config("method: n-lap\n8: 3\n")), 2, "mine.yaml", "unknown setting")


def test_a_recipe_that_is_no_text(here: Path, cli: Cli) -> None:
    Path("mine.yaml").write_bytes(b"\xff\xfe\x00\x01")

    assert_error(cli("train", "--config", "mine.yaml"), 1, "mine.yaml")


def test_no_python_object_is_made_from_a_recipe(config: Callable[[str], str], cli: Cli) -> None:
    text = "method: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [evil]]\n"
    result = cli("train", "--config", config(text))

    assert_error(result, 1, "mine.yaml")
    assert not Path("evil").exists()


def test_a_missing_recipe_names_the_nearest(config: Callable[[str], str], cli: Cli) -> None:
    config("method: n-lap\n")

    assert_error(cli("train", "--config", "mien.yaml"), 1, "cannot read mien.yaml", "did you mean mine.yaml?")
    assert_error(cli("train", "--config", "nowhere/at.yaml"), 1, "nowhere/at.yaml", "gambeson list recipes")
    Path("folder").mkdir()
    assert_error(cli("train", "--config", "folder"), 1, "cannot read folder")


def test_the_working_directory_is_no_recipe(cli: Cli) -> None:
    assert_error(cli("train", "--config", "."), 1, "cannot read .")


def test_a_misspelt_recipe_that_comes_along_names_the_nearest(cli: Cli) -> None:
    assert_error(cli("train", "--config", "lap/cifar10-n-eps88"), 1, "did you mean", "lap/cifar10-n-eps8")


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


def test_fractions_in_a_recipe_are_numbers_wherever_they_stand(config: Callable[[str], str]) -> None:
    assert read_yaml(Path(config("eps: 8/255\nmilestones: [1/4, 3/4]\nrun: a/b\n")), Path()) == {
        "eps": 8 / 255,
        "milestones": [0.25, 0.75],
        "run": "a/b",
    }


def test_read_yaml_raises_input_errors(here: Path) -> None:
    with pytest.raises(InputError, match="cannot read none"):
        read_yaml(Path("none.yaml"), Path())
