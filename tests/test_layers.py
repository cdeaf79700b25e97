"""A folder is a layer: it imports from the layers above it in the list, or from itself."""

import ast
import re
from pathlib import Path

import pytest

import gambeson

ROOT = Path(gambeson.__file__).parent
LAYERS = [
    "core",
    "data",
    "models",
    "attacks",
    "parts",
    "methods",
    "evaluation",
    "engine",
    "diagnosis",
    "finetuning",
    "compat",
    "app",
]
MODULES = sorted(path for path in ROOT.rglob("*.py") if "recipes" not in path.relative_to(ROOT).parts[:-1])


def imported(tree: ast.AST) -> set[str]:
    """Every module that the code imports, inside functions too; `from a import b` counts as `a.b`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # lazy_exports, import_module
            found |= {node.value} if re.fullmatch(r"gambeson(\.\w+)+", node.value) else set()
    return found


def wrong(layer: str, names: set[str]) -> set[str]:
    """The imports of gambeson that `layer` may not have."""
    allowed = LAYERS[: LAYERS.index(layer) + 1]
    used = {name.split(".")[1] for name in names if name.startswith("gambeson.")}
    return used - set(allowed)


def test_every_folder_is_a_layer() -> None:
    folders = {path.relative_to(ROOT).parts[0] for path in MODULES if len(path.relative_to(ROOT).parts) > 1}
    assert folders <= set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    tree = ast.parse(path.read_text())
    names = imported(tree)
    assert not {name for name in names if name.split(".")[0] in ("torchvision", "tests")}
    assert not wrong(parts[0] if len(parts) > 1 else "app", names)


def test_a_wrong_import_is_found() -> None:
    code = "def f():\n    from gambeson.methods.recipe import Recipe\n"
    assert wrong("attacks", imported(ast.parse(code))) == {"methods"}
    assert wrong("core", imported(ast.parse("import gambeson.data.loader"))) == {"data"}
    assert wrong("data", imported(ast.parse("x = {'a': 'gambeson.engine.run'}"))) == {"engine"}
    assert not wrong("engine", imported(ast.parse("from gambeson.core import errors")))
    with pytest.raises(AssertionError, match="relative import"):
        imported(ast.parse("from . import a"))


def test_no_module_is_a_haystack() -> None:
    names = {path.stem for path in MODULES} | {path.parent.name for path in MODULES}
    assert not names & {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not [
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.startswith("Base")
    ]
