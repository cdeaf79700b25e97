import ast
import inspect
from collections.abc import Callable

import pytest

import gambeson.methods
from gambeson.core.errors import InputError
from gambeson.core.threat import L2, Linf
from gambeson.methods import ALIASES, METHODS, Recipe, method


def sections(function: Callable[..., Recipe]) -> dict[str, str]:
    """The text below each heading of a docstring."""
    found: dict[str, str] = {"": ""}
    heading = ""
    for line in inspect.getdoc(function).splitlines():  # type: ignore[union-attr]
        if line.endswith(":") and line[:-1].isalpha() and not line.startswith(" "):
            heading = line[:-1]
            found[heading] = ""
        else:
            found[heading] += line + "\n"
    return found


def test_every_exported_method_is_in_the_table() -> None:
    exported = set(gambeson.methods.__all__) - {"ALIASES", "METHODS", "Recipe", "method"}
    assert exported == {function.__name__ for function in METHODS.values()}


def test_the_names_are_the_functions_with_hyphens() -> None:
    assert list(METHODS) == [function.__name__.replace("_", "-") for function in METHODS.values()]


def test_aliases_lead_to_methods_and_hide_none() -> None:
    assert set(ALIASES.values()) <= set(METHODS)
    assert not set(ALIASES) & set(METHODS)


@pytest.mark.parametrize("name", [*METHODS, *ALIASES])
def test_every_name_is_understood_in_any_spelling(name: str) -> None:
    key = ALIASES.get(name, name)
    for spelling in (name, name.upper(), name.replace("-", "_")):
        assert method(spelling) == (key, METHODS[key])


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown method 'n-fgms'") as error:
        method("n-fgms")
    assert error.value.hint is not None
    assert error.value.hint.startswith("did you mean n-fgsm")
    with pytest.raises(InputError) as error:
        method("zzzz")
    assert all(name in str(error.value.hint) for name in [*METHODS, *ALIASES])


@pytest.mark.parametrize("name", METHODS)
def test_the_defaults_make_a_recipe(name: str) -> None:
    recipe = METHODS[name]()
    assert isinstance(recipe, Recipe)
    assert recipe.threat == Linf(8 / 255)
    assert METHODS[name]() == recipe  # a value
    assert hash(METHODS[name]()) == hash(recipe)


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_reaches_the_recipe(name: str) -> None:
    function = METHODS[name]
    default = function()
    for key, parameter in inspect.signature(function).parameters.items():
        other = {
            "eps": 0.1,
            "norm": "L2",
            "bn": "batch",
            "form": "at",
            "direction": "random",
            "weight_norm": "linf",
            "clip": 0.123,
            "quantile": 0.5,
            "weight": 0.123,
            "eps_low": 1 / 255,
            "warmup": 3,
            "inner_attack": "mma",
            "mask": "random",
            "cam": "layercam",
            "layer": "layer3",
            "assign": "permuted",
            "protocol": "release",
        }
        value = other.get(key)
        if value is None:
            value = not parameter.default if isinstance(parameter.default, bool) else parameter.default + 1
        assert function(**{key: value}) != default, key


@pytest.mark.parametrize("name", [name for name, f in METHODS.items() if "norm" in inspect.signature(f).parameters])
def test_the_norm_is_the_threats(name: str) -> None:
    assert METHODS[name](eps=0.5, norm="L2").threat == L2(0.5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("eps", [8, 0, -1, float("nan")])
def test_a_budget_out_of_range_is_refused_by_all(name: str, eps: float) -> None:
    with pytest.raises(InputError, match="eps must"):
        METHODS[name](eps=eps)


@pytest.mark.parametrize("name", METHODS)
def test_a_budget_may_be_a_string(name: str) -> None:
    assert METHODS[name](eps="4/255") == METHODS[name](eps=4 / 255)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_is_documented_and_nothing_else(name: str) -> None:
    lines = sections(METHODS[name])["Args"].splitlines()
    documented = [line.split(":")[0].strip() for line in lines if line.startswith("    ") and line[4] != " "]
    assert documented == list(inspect.signature(METHODS[name]).parameters)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_is_from_and_what_differs(name: str) -> None:
    found = sections(METHODS[name])
    for heading in ("Args", "References", "Departures"):
        assert found.get(heading, "").strip(), heading
    assert list(found).index("References") < list(found).index("Departures")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_short_function(name: str) -> None:
    tree = ast.parse(inspect.getsource(METHODS[name]))
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    body = function.body[1:]  # without the docstring
    assert body[-1].end_lineno is not None
    assert body[-1].end_lineno - body[0].lineno + 1 <= 10
