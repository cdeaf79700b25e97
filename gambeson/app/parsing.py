"""Command line and YAML to typed values: a parser made from the signatures of what is called."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import inspect
import re
from argparse import SUPPRESS, Action
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, DefaultHelpFormatter, get_loader

from gambeson.core.errors import GambesonError, InputError, nearest
from gambeson.core.threat import parse_eps

RATIO = re.compile(r"\s*-?[0-9.]+\s*/\s*[0-9.]+\s*")
NEGATIVE = re.compile(r"-[0-9.]")
Options = TypeVar("Options")


class UsageError(InputError):
    """The command line is not of the command's form."""


class _Help(DefaultHelpFormatter):
    """Help without the types, which the text and the choices already say, and without defaults that say nothing."""

    SILENT = "\u200b"

    def _get_help_string(self, action: Action) -> str:
        text = (action.help or "").rstrip()
        says_nothing = action.default is None or action.default is False or action.default == SUPPRESS
        hidden = says_nothing or not action.option_strings or text.endswith(self.SILENT)
        value = "on" if action.default is True else "%(default)s"
        return text.rstrip(self.SILENT) if hidden else f"{text} (default: {value})"


class Parser(ArgumentParser):
    """jsonargparse's parser with hyphens in names, `--flag` and `--no-flag`, fractions, and near misses in errors."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, description=description, exit_on_error=False, allow_abbrev=False, formatter_class=_Help
        )
        self.flags: set[str] = set()
        self.numbers: set[str] = set()
        self.lists: set[str] = set()

    def add(self, schema: Callable[..., Any], *, skip: Collection[str] = (), **defaults: Any) -> list[str]:
        """Add the parameters of a function or dataclass, but for those in `skip`, as options; returns their names."""
        names = [name for name in inspect.signature(schema).parameters if name not in skip]
        if dataclasses.is_dataclass(schema):
            self.add_class_arguments(schema, skip=set(skip))
        else:
            self.add_function_arguments(schema, skip=set(skip))
            self._action_groups[-1].title = "the method"  # its summary already stands above
        self.set_defaults({name: value for name, value in defaults.items() if name in names})
        self.flags |= flags_of(schema)
        self.numbers |= {name for name, kind in _kinds(schema).items() if kind.startswith("float")}
        self.lists |= {name for name, kind in _kinds(schema).items() if kind.startswith("tuple[float")}
        return names

    def say(self, option: str, text: str) -> None:
        """Give an option another help text, for one whose default is not the signature's."""
        for action in self._actions:
            if action.dest == option:
                action.help = text + _Help.SILENT

    def parse(self, args: Sequence[str]) -> dict[str, Any]:
        """Values by option name.

        Raises:
            UsageError: An unknown option, a missing value or one of another type.
        """
        try:
            namespace = self.parse_args(self._normalised(args))
        except (SystemExit, GambesonError, BrokenPipeError):  # the last: nobody reads the help to its end
            raise
        except Exception as error:  # jsonargparse raises several kinds; all are about the user's words
            raise self._explained(str(error)) from None
        values: dict[str, Any] = namespace.as_dict()
        return values

    def format_help(self, formatter: Any = None) -> str:
        """The help text with hyphens in the option names; flags without values, those that are not off with `--no-`."""
        kept = [(action, action.option_strings, action.nargs) for action in self._actions if action.dest in self.flags]
        for action, names, _ in kept:
            off = action.default is False
            action.option_strings, action.nargs = names if off else [*names, f"--no_{action.dest}"], 0
        try:
            text = str(super().format_help(formatter))
        finally:
            for action, names, count in kept:
                action.option_strings, action.nargs = names, count
        return re.sub(r"--[a-z0-9_]+", lambda match: match[0].replace("_", "-"), text)

    def _normalised(self, args: Sequence[str]) -> list[str]:
        known = {option for action in self._actions for option in action.option_strings}
        spelled = {option.replace("_", "-") for option in known if option.startswith("--")}
        result: list[str] = []
        rest = list(args)
        while rest:
            arg = rest.pop(0)
            if not arg.startswith("--"):
                result.append(arg)
                continue
            name, equals, value = arg.partition("=")
            plain = name[2:].replace("-", "_")
            if plain.startswith("no_") and plain[3:] in self.flags and not equals:
                plain, value = plain[3:], "false"
            elif f"--{plain}" not in known:
                raise UsageError(f"unknown option {name}", hint=nearest(name, spelled))
            elif plain in ("help", "print_config"):
                result.append(arg)
                continue
            elif not equals and plain in self.flags and (not rest or rest[0].lower() not in ("true", "false")):
                value = "true"
            elif not equals:
                if not rest or (rest[0].startswith("-") and not NEGATIVE.match(rest[0])):
                    raise UsageError(f"{name} needs a value")
                value = rest.pop(0)
            if plain in self.lists:
                value = _numbers(plain, value)
            result.append(f"--{plain}={_number(value) if plain in self.numbers else value}")
        return result

    def _explained(self, message: str) -> UsageError:
        unknown = re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", message)
        if unknown:
            names = [a.dest for a in self._actions]
            return UsageError(f"unknown setting {unknown[1]!r}", hint=nearest(unknown[1], names))
        wrong = re.search(r'Parser key "([^"]+)":\s*(.*?)\. Got value: (.*)', message, re.DOTALL)
        if wrong:
            kind = re.sub(r"Expected an? |typing\.|<class '|'>", "", wrong[2]).strip()
            return _wrong(wrong[1], " ".join(kind.split()), wrong[3])
        choice = re.search(
            r'Parser key "([^"]+)":.*Subtypes: \[typing\.(Literal\[[^\]]*\]).*Given value: (.*)', message, re.DOTALL
        )
        if choice:
            return _wrong(choice[1], choice[2], choice[3])
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
    choices = re.findall(r"'([^']*)'", kind) if kind.startswith("Literal") else []
    expected = f"one of {', '.join(choices)}" if choices else names.get(kind, kind)
    near = difflib.get_close_matches(value.strip(), choices, n=1)
    hint = f"did you mean {near[0]}?" if near else None
    return UsageError(f"--{option.replace('_', '-')} needs {expected}, got {value.strip()!r}", hint=hint)


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
        if arg.startswith("-") and not (option and NEGATIVE.match(arg)):
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


def _kinds(schema: Callable[..., Any]) -> dict[str, str]:
    return {name: str(p.annotation) for name, p in inspect.signature(schema).parameters.items()}


def _number(word: str) -> str:
    return repr(parse_eps(word)) if RATIO.fullmatch(word) else word


def _numbers(option: str, text: str) -> str:
    """A list of numbers, `0.5,0.75` or `[0.5, 0.75]`, as the parser wants it."""
    words = [_number(word.strip()) for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    words = [word for word in words if word]
    try:
        return str([float(word) for word in words])
    except ValueError:
        name = f"--{option.replace('_', '-')}"
        raise UsageError(
            f"{name} needs numbers, comma-separated, got {text!r}", hint=f"such as {name} 0.5,0.75"
        ) from None


def load_yaml(text: str) -> Any:
    """YAML, `8/255` as a number."""
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


def parse_run(command: str, description: str, schema: type[Options], args: Sequence[str]) -> tuple[Path, Options]:
    """The run directory and the options of a command of the form `gambeson COMMAND RUN [options]`.

    Raises:
        UsageError: Not of that form.
    """
    parser = Parser(f"gambeson {command} RUN", description)
    parser.add(schema)
    if "-h" in args or "--help" in args:
        parser.parse(["--help"])
    words, rest = split_words(args, parser.flags)
    if len(words) != 1:
        raise UsageError(
            f"{command} needs one run directory, got {len(words)}", hint=f"gambeson {command} runs/digits-n-lap-1"
        )
    return Path(words[0]), options_of(schema, parser.parse(rest))


def require_positive(options: Any, *names: str) -> None:
    """Refuse numbers below 1.

    Raises:
        InputError: One of the options is below 1; None is not.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def name_of(stem: str, options: Any, *shaping: str) -> str:
    """The name of a file of results: `stem`, and of the options `shaping` them those that differ from their defaults.

    Results of other settings then do not overwrite each other. Long values are shortened to a digest.

    Args:
        stem: The beginning.
        options: A dataclass.
        shaping: Names of options.

    Examples:
        >>> from gambeson.app.options import CriticalityOptions
        >>> name_of("criticality", CriticalityOptions(size=40, modules="conv1, fc"), "size", "modules", "seed")
        'criticality-size-40-modules-conv1+fc'
    """
    usual = {field.name: field.default for field in dataclasses.fields(options)}
    for name in shaping:
        value = getattr(options, name)
        if value == usual[name]:
            continue
        text = re.sub(r"[^\w.-]+", "+", str(value).replace(":", "_")).strip("+")
        if len(text) > 40:
            text = hashlib.sha256(str(value).encode()).hexdigest()[:8]
        stem += f"-{name.replace('_', '-')}" + ("" if value is True else f"-{text}")
    return stem


def options_of(schema: type[Options], values: Mapping[str, Any]) -> Options:
    """The dataclass `schema`, filled with those of the `values` that belong to it."""
    return schema(**{f.name: values[f.name] for f in dataclasses.fields(schema)})  # type: ignore[arg-type]
