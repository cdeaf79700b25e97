"""Data sets as uint8 tensors: `load(name)` reads the original files and returns train, val, test and the facts."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.data.catalog import DATASETS, load
    from gambeson.data.facts import FACTS, Facts
    from gambeson.data.loader import Loader, augment
    from gambeson.data.splits import Examples, Splits, hold_out

__all__ = ["DATASETS", "FACTS", "Examples", "Facts", "Loader", "Splits", "augment", "hold_out", "load"]

__getattr__ = lazy_exports(
    __name__,
    {
        "DATASETS": "gambeson.data.catalog",
        "FACTS": "gambeson.data.facts",
        "Examples": "gambeson.data.splits",
        "Facts": "gambeson.data.facts",
        "Loader": "gambeson.data.loader",
        "Splits": "gambeson.data.splits",
        "augment": "gambeson.data.loader",
        "hold_out": "gambeson.data.splits",
        "load": "gambeson.data.catalog",
    },
)
