"""Recipe files: where they lie, and what they say to a parser."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

import yaml

from gambeson.app.parsing import Parser, UsageError, load_yaml
from gambeson.core.errors import FileError, InputError, nearest


def recipes_folder() -> Path:
    """Where the recipes that come along lie: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "recipes" if (package / "recipes").is_dir() else package.parent / "recipes"


def find_recipe(name: str) -> Path:
    """A recipe file by path, or by its name below the recipes that come along (`lap/cifar10-n-eps8`)."""
    path = Path(name)
    if path.is_file():
        return path
    for inside in (recipes_folder() / name, recipes_folder() / f"{name}.yaml"):
        if inside.is_file():
            return inside
    return path


def read_yaml(path: Path, shipped: Path) -> dict[str, Any]:
    """A recipe file.

    Args:
        path: The file.
        shipped: Folder of the recipes that come along, for near misses.

    Raises:
        InputError: There is no recipe of that name (a name with an ending is a file's), or it is not a table of
            settings in YAML.
        FileError: It cannot be read.
    """
    try:
        content = load_yaml(path.read_text())
    except OSError as error:
        known = [str(p.relative_to(shipped).with_suffix("")) for p in shipped.rglob("*.yaml")]
        known += [str(path.parent / p.name) for p in path.parent.glob("*.yaml")]
        near = difflib.get_close_matches(str(path), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`gambeson list recipes` shows those that come along"
        if isinstance(error, FileNotFoundError) and path.suffix not in (".yaml", ".yml"):
            raise InputError(f"there is no recipe {path}", hint=hint) from None
        raise FileError(f"cannot read {path}: {error.strerror}", hint=hint) from None
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is no text: {error}") from None
    except yaml.YAMLError as error:
        raise not_yaml(path, error) from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold settings, one `name: value` per line")
    return content


def not_yaml(file: Path, error: yaml.YAMLError) -> InputError:
    """What is wrong with the YAML of a file, and where; the parser's own words know of the text alone."""
    words = " ".join(str(error).split())
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"(line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        words = " ".join(filter(None, (error.problem, error.context, where)))
    elif isinstance(error, yaml.reader.ReaderError):
        words = f"{error.reason} (character {error.position + 1})"
    made = isinstance(error, yaml.constructor.ConstructorError)  # it is YAML, of which no table can be made
    return InputError(f"{file}: {words}" if made else f"{file} is not YAML: {words}")


def defaults_from(parser: Parser, file: Path, content: dict[str, Any]) -> dict[str, Any]:
    """A recipe's settings as typed values for `parser`.

    Raises:
        UsageError: A setting that the method does not have, or a value of another type.
    """
    known = {action.dest for action in parser._actions} - {"help", "config", "print_config"}
    for key in content:
        if str(key).replace("-", "_") not in known:
            raise UsageError(f"{file}: unknown setting {key!r}", hint=nearest(str(key), known))
    words = [f"--{key}={word_of(value)}" for key, value in content.items()]
    values = parser.parse(words)
    return {key.replace("-", "_"): values[key.replace("-", "_")] for key in content}


def word_of(value: Any) -> str:
    """A value from YAML as it would stand on the command line.

    Examples:
        >>> word_of("8/255"), word_of(True), word_of([0.5, 0.75]), word_of(None)
        ('8/255', 'true', '[0.5, 0.75]', 'null')
    """
    return json.dumps(value) if not isinstance(value, str) else value
