import sys
import types

import pytest

from gambeson.core.lazy import lazy_exports


def test_a_name_is_imported_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    get = lazy_exports("package", {"thing": "package_of_the_thing"})  # no such module yet: nothing is imported
    module = types.ModuleType("package_of_the_thing")
    module.thing = 42  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "package_of_the_thing", module)
    assert get("thing") == 42


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'other'"):
        lazy_exports("package", {"thing": "json"})("other")
