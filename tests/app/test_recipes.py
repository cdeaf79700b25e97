"""Recipe files: those that come along, one's own, and what is said of files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.helpers import FAST, Cli, args_of, assert_error
from gambeson.app import build
from gambeson.app.recipes import defaults_from, find_recipe, read_yaml, recipes_folder
from gambeson.app.tuning import finetune_parser
from gambeson.core.errors import InputError
from gambeson.core.threat import Linf
from gambeson.data import DATASETS, FACTS
from gambeson.engine.optim import learning_rate
from gambeson.engine.settings import Settings
from gambeson.finetuning import choose_layers, parse_alphas
from gambeson.finetuning.rift import needs_criticality
from gambeson.methods import Recipe
from gambeson.models import MODELS, create
from gambeson.parts import Jet, LayerAware, PixelBudget, ZScore

Plan = Callable[..., dict[str, Any]]

BETA = {
    "v": {8: 0.03, 12: 0.058, 16: 0.07, 32: 0.48},
    "r": {8: 0.002, 12: 0.03, 16: 0.05, 32: 0.3},
    "n": {8: 0.001, 12: 0.002, 16: 0.005, 32: 0.75},
}
"""LAP's README, CIFAR-10 on PreActResNet-18: beta by base method and eps in grey levels."""


# those that come along


RECIPES = sorted(str(file.relative_to(recipes_folder()).with_suffix("")) for file in recipes_folder().rglob("*.yaml"))
FINETUNING = [name for name in RECIPES if "finetune" in read_yaml(find_recipe(name), recipes_folder())]
TRAINING = [name for name in RECIPES if name not in FINETUNING]


def test_the_recipes_are_listed_with_their_first_line(cli: Cli) -> None:
    lines = cli("list", "recipes").out.splitlines()

    assert [line.split()[0] for line in lines[1:]] == RECIPES
    assert all("#" not in line and len(line.split()) > 4 for line in lines[1:])


def test_lap_has_its_twelve_recipes() -> None:
    assert {name for name in RECIPES if name.startswith("lap/")} == {
        f"lap/cifar10-{base}-eps{eps}" for base in BETA for eps in BETA[base]
    }


@pytest.mark.parametrize("name", TRAINING)
def test_every_recipe_is_valid(name: str, planned: Plan) -> None:
    call = planned("--config", name)

    assert isinstance(build.recipe(call), Recipe)
    assert call["data"]["name"] in DATASETS
    assert call["model"]["name"] in MODELS
    Settings(**{**call["settings"], "milestones": tuple(call["settings"]["milestones"])})


@pytest.mark.parametrize("name", FINETUNING)
def test_every_recipe_for_fine_tuning_is_valid(name: str, planned: Plan) -> None:
    content = read_yaml(find_recipe(name), recipes_folder())
    parser = finetune_parser(content.pop("finetune"))
    parser.set_defaults(defaults_from(parser, find_recipe(name), content))
    values = parser.parse([])
    second_line = find_recipe(name).read_text().splitlines()[1]
    call = planned("--config", second_line.split()[-1])
    model = create(call["model"]["name"], FACTS[call["data"]["name"]].task, width=8)

    assert f"--config {name}," in second_line
    assert values["lr"] == 0.001
    assert values["milestones"] == (0.5,)
    assert values["fill"] == "reflect"
    assert parse_alphas(values["alphas"]) == pytest.approx([k / 10 for k in range(11)])
    if not needs_criticality(values["module"]):
        assert choose_layers(model, values["module"]) is not None


def test_a_recipe_goes_to_its_own_command(cli: Cli) -> None:
    assert_error(cli("train", "--config", "rift/release"), 2, "gambeson finetune rift RUN --config rift/release")
    assert_error(cli("finetune", "rift", "runs/x", "--config", "lap/cifar10-n-eps8"), 2, "finetune: rift")


@pytest.mark.parametrize("base", BETA)
@pytest.mark.parametrize("eps", [8, 12, 16, 32])
def test_laps_recipes_have_the_published_values(base: str, eps: int, planned: Plan) -> None:
    call = planned("--config", f"lap/cifar10-{base}-eps{eps}")
    recipe, settings = build.recipe(call), call["settings"]

    assert call["method"]["name"] == f"{base}-lap"
    assert recipe.threat.eps == eps / 255
    assert recipe.weight_perturbation is not None
    assert recipe.weight_perturbation.size == LayerAware(BETA[base][eps], 0.3)
    assert recipe.attack is not None
    assert recipe.attack.rel_step_size == {"v": 1.0, "r": 1.25, "n": 1.0}[base]
    assert recipe.attack.project is (base != "n")
    assert (call["data"]["name"], call["data"]["val_fraction"]) == ("cifar10", 0)
    assert call["model"] == {"name": "preact-resnet18", "width": None}
    assert (settings["epochs"], settings["batch_size"], settings["lr"]) == (30, 128, 0.2)
    assert (settings["schedule"], settings["weight_decay"]) == ("cyclic", 5e-4)
    assert (settings["momentum"], settings["momentum_low"], settings["bf16"]) == (0.9, 0.8, False)


PART_ROWS = {
    "at": ("pgd-at", None, False),
    "trades": ("trades", None, False),
    "mart": ("mart", None, False),
    **{
        f"part{k}-s{s}{p}": (f"part{k}", s, bool(p))
        for k in ("", "-t", "-m")
        for s in (1, 10)
        for p in ("", "-release")
    },
}
"""Rows of PART's main table by the end of the recipe's name: method, refresh, release."""


@pytest.mark.parametrize("data", ["cifar10", "svhn", "tiny-imagenet"])
@pytest.mark.parametrize("row", PART_ROWS)
def test_parts_recipes_have_the_released_settings(data: str, row: str, planned: Plan) -> None:
    method, refresh, release = PART_ROWS[row]
    call = planned("--config", f"part/{data}-{row}")
    recipe, settings = build.recipe(call), Settings(**{**call["settings"], "milestones": (0.9875,)})

    assert call["method"]["name"] == method
    assert (call["data"]["name"], call["data"]["val_fraction"]) == (data, 0)
    assert call["model"] == {"name": "wrn-34-10" if data == "tiny-imagenet" else "resnet18", "width": None}
    assert (settings.epochs, settings.batch_size, settings.lr, settings.momentum) == (80, 128, 0.01, 0.9)
    assert settings.weight_decay == (3.5e-3 if data == "svhn" else 2e-4)
    assert (settings.pad, settings.flip) == ((0, False) if data == "svhn" else (None, None))
    assert recipe.threat == Linf(8 / 255)
    assert recipe.attack is not None
    assert recipe.attack.steps == 10
    step = recipe.attack.step_size or recipe.attack.rel_step_size * 8 / 255
    assert step == pytest.approx((1 if data == "svhn" else 2) / 255)
    if method != "part" and method != "pgd-at":
        assert recipe.objective.beta == 6.0  # type: ignore[attr-defined]
    if refresh is None:
        assert (recipe.parts, settings.schedule) == ((), "constant")
        return
    assert settings.schedule == "piecewise"
    rates = [learning_rate("piecewise", step, 80 * 391, 0.01, (0.9875,)) for step in range(80 * 391)]
    assert rates == pytest.approx([0.01] * 79 * 391 + [0.001] * 391)
    (budget,) = recipe.parts
    assert isinstance(budget, PixelBudget)
    assert (budget.eps_low, budget.refresh, budget.warmup) == (7 / 255, refresh, 20)
    kinds = (Jet(), "release", "low") if release else (ZScore(), "own", "full")
    assert (budget.mask, budget.assign, budget.dead) == kinds


def test_parts_controls_differ_from_part_in_one_thing(planned: Plan) -> None:
    for data in ("cifar10", "svhn", "tiny-imagenet"):
        part = planned("--config", f"part/{data}-part-s1")
        for name, argument in (
            ("uniform-7", {"mask": "uniform"}),
            ("uniform-7.2", {"mask": "uniform", "eps_low": 7.2 / 255}),
            ("permuted", {"assign": "permuted"}),
        ):
            control = planned("--config", f"part/{data}-control-{name}")
            assert control["settings"] == part["settings"]
            given, theirs = control["method"]["args"], part["method"]["args"]
            assert {key: value for key, value in given.items() if value != theirs[key]} == argument
        control = planned("--config", f"part/{data}-control-uniform-8")
        assert control["settings"] == part["settings"]
        assert build.recipe(control).parts == ()
        assert build.recipe(control).threat.eps == 8 / 255


@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_recipe_by_short_name_and_by_path(suffix: str, planned: Plan) -> None:
    by_name = planned("--config", f"lap/cifar10-n-eps8{suffix}")
    by_path = planned("--config", str(recipes_folder() / "lap/cifar10-n-eps8.yaml"))

    assert by_name == by_path


def test_ones_own_file_goes_before_a_recipe_that_comes_along(here: Path, planned: Plan) -> None:
    Path("lap").mkdir()
    Path("lap/cifar10-n-eps8").write_text("method: trades\n")

    assert find_recipe("lap/cifar10-n-eps8") == Path("lap/cifar10-n-eps8")
    assert planned("--config", "lap/cifar10-n-eps8")["method"]["name"] == "trades"


def test_a_recipe_trains_after_a_change_of_data(cli: Cli) -> None:
    words = ("--data", "digits", "--model", "small-cnn", "--val-fraction", "0.05")
    result = cli("train", "--config", "lap/cifar10-n-eps16", *words, *FAST, "--run", "r")

    assert result.code == 0
    assert "n-lap(eps=16/255, beta=0.005" in result.out


# files


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
        ("method: n-lpa\n", 2, ["'n-lpa'", "did you mean n-lap"]),
        ("eps: 8/255\n", 2, ["which method?"]),
        ("a: [1\n", 2, ["mine.yaml is not YAML: ", "(line 2, column 1)"]),
        ("- n-lap\n", 2, ["mine.yaml must hold settings"]),
        ("n-lap\n", 2, ["mine.yaml must hold settings"]),
        ("", 2, ["mine.yaml must hold settings"]),
        ("method: n-lap\nepochs: many\n", 2, ["--epochs needs a whole number", "'many'"]),
        ("method: n-lap\nepochs: {a: 1}\n", 2, ["--epochs needs a whole number"]),
        ("method: n-lap\neps: 8/0\n", 2, ["eps must be a number or a fraction", "'8/0'"]),
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

    assert_error(result, 2, "mine.yaml: could not determine a constructor", "(line 1, column 9)")
    assert not Path("evil").exists()


def test_a_missing_recipe_names_the_nearest(config: Callable[[str], str], cli: Cli) -> None:
    config("method: n-lap\n")

    assert_error(cli("train", "--config", "mien.yaml"), 1, "cannot read mien.yaml: No such", "did you mean mine.yaml?")
    assert_error(cli("train", "--config", "nowhere/at.yaml"), 1, "nowhere/at.yaml", "gambeson list recipes")
    assert_error(cli("train", "--config", "lap/nothing"), 2, "there is no recipe lap/nothing")
    Path("folder").mkdir()
    assert_error(cli("train", "--config", "folder"), 1, "cannot read folder")


def test_the_working_directory_is_no_recipe(cli: Cli) -> None:
    assert_error(cli("train", "--config", "."), 1, "cannot read .")


def test_a_misspelt_recipe_that_comes_along_names_the_nearest(cli: Cli) -> None:
    assert_error(cli("train", "--config", "lap/cifar10-n-eps88"), 2, "did you mean", "lap/cifar10-n-eps8")


def test_fractions_in_a_recipe_are_numbers_wherever_they_stand(config: Callable[[str], str]) -> None:
    assert read_yaml(Path(config("eps: 8/255\nmilestones: [1/4, 3/4]\nrun: a/b\n")), Path()) == {
        "eps": 8 / 255,
        "milestones": [0.25, 0.75],
        "run": "a/b",
    }


def test_read_yaml_raises_input_errors(here: Path) -> None:
    with pytest.raises(InputError, match="there is no recipe none"):
        read_yaml(Path("none"), Path())
