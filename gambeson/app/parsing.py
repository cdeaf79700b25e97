"""Command line and YAML to typed values: a parser made from the signatures of what is called."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, get_loader

from gambeson.core.errors import GambesonError, InputError, nearest
from gambeson.core.threat import parse_eps

RATIO = re.compile(r"\s*[0-9.]+\s*/\s*[0-9.]+\s*")


class UsageError(GambesonError):
    """The command line is not of the command's form; exit code 2."""


class Parser(ArgumentParser):
    """jsonargparse's parser with hyphens in names, `--flag` and `--no-flag`, fractions, and near misses in errors."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
        self.flags: set[str] = set()
        self.numbers: set[str] = set()

    def add(self, schema: Callable[..., Any], **defaults: Any) -> list[str]:
        """Add the parameters of a function or dataclass as options; returns their names."""
        names = list(inspect.signature(schema).parameters)
        if dataclasses.is_dataclass(schema):
            self.add_class_arguments(schema)
        else:
            self.add_function_arguments(schema)
        self.set_defaults({name: value for name, value in defaults.items() if name in names})
        self.flags |= flags_of(schema)
        self.numbers |= {name for name, kind in _kinds(schema).items() if kind.startswith("float")}
        return names

    def say(self, option: str, text: str) -> None:
        """Give an option another help text, for one whose default is not the signature's."""
        for action in self._actions:
            if action.dest == option:
                action.help = text

    def parse(self, args: Sequence[str]) -> dict[str, Any]:
        """Values by option name.

        Raises:
            UsageError: An unknown option, a missing value or one of another type.
        """
        try:
            namespace = self.parse_args(self._normalised(args))
        except (SystemExit, GambesonError):
            raise
        except Exception as error:  # jsonargparse raises several kinds; all are about the user's words
            raise self._explained(str(error)) from None
        values: dict[str, Any] = namespace.as_dict()
        return values

    def format_help(self, formatter: Any = None) -> str:
        """The help text with hyphens in the option names."""
        text = re.sub(r"--[a-z0-9_]+", lambda match: match[0].replace("_", "-"), str(super().format_help(formatter)))
        return re.sub(r"\n<(?:function|class) [^\n]*>:\n", "\n", text)

    def _normalised(self, args: Sequence[str]) -> list[str]:
        known = {option for action in self._actions for option in action.option_strings}
        result: list[str] = []
        option = ""
        for position, arg in enumerate(args):
            if not arg.startswith("--") or arg == "--":
                result.append(_number(arg) if option[2:] in self.numbers else arg)
                option = ""
                continue
            name, equals, value = arg.partition("=")
            option = "--" + name[2:].replace("-", "_")
            plain = option[2:]
            if plain.startswith("no_") and plain[3:] in self.flags and not equals:
                result += [f"--{plain[3:]}", "false"]
                continue
            if option not in known:
                spelled = {o.replace("_", "-") for o in known if o.startswith("--")}
                raise UsageError(f"unknown option {name}", hint=nearest(name, spelled))
            result.append(option + equals + (_number(value) if plain in self.numbers else value))
            following = args[position + 1] if position + 1 < len(args) else "--"
            if plain in self.flags and not equals and following.lower() not in ("true", "false"):
                result.append("true")
        return result

    def _explained(self, message: str) -> UsageError:
        unknown = re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", message)
        if unknown:
            names = [a.dest for a in self._actions]
            return UsageError(f"unknown setting {unknown[1]!r}", hint=nearest(unknown[1], names))
        wrong = re.search(r'Parser key "([^"]+)":\s*(.*?)\. Got value: (.*)', message, re.DOTALL)
        if wrong:
            return _wrong(wrong[1], re.sub(r"Expected an? |typing\.|<class '|'>", "", wrong[2]).strip(), wrong[3])
        union = re.search(
            r'Parser key "([^"]+)":.*Subtypes: \[<class \'(\w+)\'>.*Given value: (.*)', message, re.DOTALL
        )
        if union:
            return _wrong(union[1], union[2], union[3])
        return UsageError(" ".join(message.split()))


def _wrong(option: str, kind: str, value: str) -> UsageError:
    names = {
        "float": "a number or a fraction",
        "int": "a whole number",
        "bool": "true or false",
        "tuple": "a list, [a,b]",
    }
    expected = names.get(kind, kind.replace("Literal", "one of ").replace("\n", " "))
    return UsageError(f"--{option.replace('_', '-')} needs {expected}, got {value.strip()!r}")


def flags_of(schema: Callable[..., Any]) -> set[str]:
    """The parameters that are true or false, and so may stand without a value."""
    return {name for name, kind in _kinds(schema).items() if kind in ("bool", "bool | None")}


def split_words(args: Sequence[str], flags: set[str]) -> tuple[list[str], list[str]]:
    """Words that are neither options nor their values, and the rest.

    Examples:
        >>> split_words(["--epochs", "3", "n-lap", "--ascent"], {"ascent"})
        (['n-lap'], ['--epochs', '3', '--ascent'])
    """
    words, rest = [], []
    option = ""
    for arg in args:
        if arg.startswith("-"):
            rest.append(arg)
            name = arg[2:].replace("-", "_")
            option = name if arg.startswith("--") and "=" not in arg and name.removeprefix("no_") == name else ""
            option = "" if name in ("help", "h") else option
        elif option and (option not in flags or arg.lower() in ("true", "false")):
            rest.append(arg)
            option = ""
        else:
            words.append(arg)
            option = ""
    return words, rest


def peek(args: Sequence[str], option: str) -> str | None:
    """The value of `--option` on a command line, without parsing the rest."""
    value = None
    for position, arg in enumerate(args):
        name, equals, _ = arg.replace("_", "-", 4).partition("=") if arg.startswith("--") else (arg, "", "")
        if name == f"--{option}":
            value = arg.partition("=")[2] if equals else (args[position + 1] if position + 1 < len(args) else None)
    return value


def read_yaml(path: Path, shipped: Path) -> dict[str, Any]:
    """A recipe file.

    Args:
        path: The file.
        shipped: Folder of the recipes that come along, for near misses.

    Raises:
        InputError: Missing, not YAML, or not a table of settings.
    """
    try:
        content = _load(path.read_text())
    except OSError as error:
        known = [str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml")]
        known += [str(path.parent / p.name) for p in path.parent.glob("*.yaml")]
        near = difflib.get_close_matches(str(path), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`gambeson list recipes` shows those that come along"
        raise InputError(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold settings, one `name: value` per line")
    return content


def _kinds(schema: Callable[..., Any]) -> dict[str, str]:
    return {name: str(p.annotation) for name, p in inspect.signature(schema).parameters.items()}


def _number(word: str) -> str:
    return repr(parse_eps(word)) if RATIO.fullmatch(word) else word


def _load(text: str) -> Any:
    return _ratios(get_loader("yaml")(text))


def _ratios(value: Any) -> Any:
    """`8/255` as a number, wherever it stands."""
    if isinstance(value, str) and RATIO.fullmatch(value):
        return parse_eps(value)
    if isinstance(value, dict):
        return {key: _ratios(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_ratios(item) for item in value]
    return value
