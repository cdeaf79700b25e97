"""A sweep's file: what it may say, and what is refused before any row is looked at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gambeson.app import corrupting
from gambeson.app.options import CorruptionOptions
from gambeson.app.parsing import Parser, UsageError, options_of, split_words
from gambeson.app.recipes import not_yaml
from gambeson.core.errors import FileError, GambesonError, InputError, nearest

KEYS = ("seeds", "rows", "common", "grid", "attack", "pairs", "ood", "threads", "jobs", "slurm")
"""What a sweep's file may say."""


def read_sweep(file: Path) -> dict[str, Any]:
    """The content of a sweep's file.

    Raises:
        InputError: It is not YAML, no table, or says something twice, or something unknown.
        FileError: It cannot be read.
    """
    try:
        content = yaml.load(file.read_text(), _Loader)
    except OSError as error:
        near = [str(other) for other in sorted(file.parent.glob("*.y*ml"))]
        hint = nearest(str(file), near) if near else None
        raise FileError(f"cannot read {file}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError as error:
        raise FileError(f"{file} is no text: {error}") from None
    except yaml.YAMLError as error:
        raise not_yaml(file, error) from None
    if not isinstance(content, dict):
        raise InputError(f"{file} must be a table with {', '.join(KEYS[:2])} and perhaps {', '.join(KEYS[2:])}")
    for key in content:
        if key not in KEYS:
            raise InputError(f"{file}: unknown key {key!r}", hint=nearest(str(key), KEYS))
    return content


def split(words: str, where: str) -> list[str]:
    """Words as a shell would split them.

    Raises:
        InputError: A quotation mark is not closed.
    """
    try:
        return shlex.split(words)
    except ValueError as error:
        raise InputError(f"{where}: {str(error).lower()} in {words!r}") from None


def corruption_options(words: str) -> CorruptionOptions:
    """The words after `gambeson corruptions RUN` as options.

    Raises:
        InputError: Unknown corruptions and the like, or options that the sweep sets itself.
        UsageError: They are not words of that command.
    """
    parser = Parser("gambeson corruptions RUN", "")
    parser.add(CorruptionOptions)
    args = split(words, "ood")
    for name in ("checkpoint", "out", "json"):
        if any(arg.partition("=")[0] == f"--{name}" for arg in args):
            raise InputError(f"ood says --{name}, which the sweep sets itself")
    try:
        stray, rest = split_words(args, parser.flags)
        if stray:
            raise UsageError(f"unknown word {stray[0]!r}", hint="such as ood: --set standard15")
        options = options_of(CorruptionOptions, parser.parse(rest))
        corrupting.check(options)
    except GambesonError as error:
        raise type(error)(f"ood: {error.message}", hint=error.hint) from None
    return options


def seeds_of(content: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    """The seeds.

    Raises:
        InputError: No list of different whole numbers of at least 0.
    """
    seeds = content.get("seeds")
    right = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not right or len(set(seeds or ())) < len(seeds or ()):
        raise InputError(
            f"{file}: seeds must be different whole numbers, got {seeds!r}", hint="such as seeds: [0, 1, 2]"
        )
    return tuple(seeds or ())


def count_of(content: Mapping[str, Any], key: str) -> int:
    """A number of threads or jobs; one where nothing is said.

    Raises:
        InputError: No whole number of at least 1.
    """
    value = content.get(key, 1)
    if type(value) is not int or value < 1:
        raise InputError(f"{key} must be a whole number of at least 1, got {value!r}")
    return value


class _Loader(yaml.SafeLoader):
    """YAML in which nothing is said twice: of two rows with one label the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)
