"""The package `benchmarks`, which lies beside the tests and is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FILE = Path(__file__).parents[1] / "benchmarks" / "__init__.py"


def load(name: str) -> ModuleType:
    """The module of that name in or below `benchmarks`."""
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location("benchmarks", FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["benchmarks"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["benchmarks"])
    return importlib.import_module(name)
