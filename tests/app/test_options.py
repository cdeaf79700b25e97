"""The schema of the command line has no ambiguous and no undocumented name."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from itertools import combinations

import pytest

from gambeson.app.options import EvaluateOptions, ResumeOptions, RunsOptions, TrainOptions
from gambeson.engine.settings import Settings
from gambeson.methods import METHODS

SCHEMAS = [EvaluateOptions, ResumeOptions, RunsOptions, TrainOptions, Settings]


def documented(schema: object) -> set[str]:
    text = inspect.getdoc(schema) or ""
    return set(re.findall(r"^    (\w+): ", text.split("Args:\n")[1].split("\n\n")[0], re.MULTILINE))


@pytest.mark.parametrize("name", METHODS)
def test_no_option_of_a_method_has_the_name_of_another_option(name: str) -> None:
    groups = [set(inspect.signature(METHODS[name]).parameters)]
    groups += [{f.name for f in fields(schema)} for schema in (Settings, TrainOptions)]
    reserved = {"method", "config", "help", "print_config"}

    assert all(a.isdisjoint(b) for a, b in combinations([*groups, reserved], 2))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_option_is_documented_and_has_a_default(schema: type) -> None:
    assert documented(schema) == {f.name for f in fields(schema)}
    schema()


@pytest.mark.parametrize("name", METHODS)
def test_every_argument_of_a_method_is_documented_and_has_a_default(name: str) -> None:
    assert documented(METHODS[name]) == set(inspect.signature(METHODS[name]).parameters)
    METHODS[name]()
