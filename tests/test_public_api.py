"""What a user may import: lists kept by hand, sorted, documented, and cheap until torch is used."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import gambeson

ROOT = Path(gambeson.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if path.name != "__main__.py"
)


def declared(module: str) -> list[str] | None:
    """The `__all__` of a module, or None."""
    for node in ast.parse(source(module).read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def source(module: str) -> Path:
    path = ROOT.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def order(name: str) -> tuple[int, list[str | tuple[int, str]], str]:
    """Constants, classes, the rest, each naturally sorted: ruff's RUF022."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, [f"{int(part):09}" if part.isdigit() else part for part in re.split(r"(\d+)", name)], name


PUBLIC = [module for module in MODULES if declared(module) is not None]


def test_the_packages_for_users_say_what_is_public() -> None:
    for package in ("attacks", "data", "engine", "evaluation", "methods", "models", "parts"):
        assert declared(f"gambeson.{package}"), package


@pytest.mark.parametrize("module", PUBLIC)
def test_all_is_sorted_and_importable(module: str) -> None:
    names = declared(module)
    assert names is not None
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=order)
    loaded = import_module(module)
    for name in names:
        assert getattr(loaded, name) is not None


def test_the_order_is_the_one_of_ruff() -> None:
    assert sorted(["pgd", "PGD", "Zero", "a2", "a10", "EMA", "Linf"], key=order) == [
        "EMA",
        "PGD",
        "Linf",
        "Zero",
        "a2",
        "a10",
        "pgd",
    ]


@pytest.mark.parametrize("module", PUBLIC)
def test_lazy_exports_are_exactly_what_is_declared(module: str) -> None:
    calls = [
        node
        for node in ast.walk(ast.parse(source(module).read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy_exports"
    ]
    for call in calls:
        assert sorted(ast.literal_eval(call.args[1])) == sorted(declared(module) or [])
        with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nonsense'"):
            import_module(module).nonsense  # noqa: B018


def undocumented(tree: ast.Module) -> Iterator[str]:
    """The public modules, classes, functions and methods without a docstring."""
    if ast.get_docstring(tree) is None:
        yield "module"
    todo: list[tuple[str, ast.stmt, bool]] = [("", node, False) for node in tree.body]
    for prefix, node, in_class in todo:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            todo += [(f"{prefix}{node.name}.", child, True) for child in node.body]
        inherited = in_class and any(isinstance(d, ast.Name) and d.id == "override" for d in node.decorator_list)
        if ast.get_docstring(node) is None and not inherited:
            yield prefix + node.name


@pytest.mark.parametrize("module", MODULES)
def test_everything_public_has_a_docstring(module: str) -> None:
    assert list(undocumented(ast.parse(source(module).read_text()))) == []


def test_a_missing_docstring_is_found() -> None:
    code = '"""Module."""\nclass A:\n    """A."""\n    def f(self): ...\n    def _g(self): ...\ndef h(): ...\n'
    assert list(undocumented(ast.parse(code))) == ["h", "A.f"]


@pytest.mark.parametrize("module", ["gambeson.methods", "gambeson.engine", "gambeson.engine.settings", "gambeson.data"])
def test_help_does_not_load_torch(module: str) -> None:
    """The command line defers torch; the signatures of the methods must not need it."""
    code = (
        "import sys; from gambeson.app.cli import _defer_torch; _defer_torch();"
        f"import {module}; assert 'torch._C' not in sys.modules, 'torch was loaded';"
        "import torch; torch.zeros(1); assert 'torch._C' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_gambeson_imports_nothing_heavy() -> None:
    code = (
        "import sys, gambeson, gambeson.app.cli;"
        "heavy = {'torch', 'numpy', 'matplotlib', 'sklearn', 'scipy', 'rich', 'jsonargparse'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
