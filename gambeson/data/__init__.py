"""Data sets as uint8 tensors: `load(name)` reads the original files and returns train, val, test and the facts."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.data.catalog import DATASETS, load
    from gambeson.data.corrupted import read_corrupted
    from gambeson.data.corruptions import CORRUPTIONS, corrupt
    from gambeson.data.facts import FACTS, Facts
    from gambeson.data.loader import Loader, augment
    from gambeson.data.splits import Examples, Splits, hold_out

__all__ = [
    "CORRUPTIONS",
    "DATASETS",
    "FACTS",
    "Examples",
    "Facts",
    "Loader",
    "Splits",
    "augment",
    "corrupt",
    "hold_out",
    "load",
    "read_corrupted",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CORRUPTIONS": "gambeson.data.corruptions",
        "DATASETS": "gambeson.data.catalog",
        "FACTS": "gambeson.data.facts",
        "Examples": "gambeson.data.splits",
        "Facts": "gambeson.data.facts",
        "Loader": "gambeson.data.loader",
        "Splits": "gambeson.data.splits",
        "augment": "gambeson.data.loader",
        "corrupt": "gambeson.data.corruptions",
        "hold_out": "gambeson.data.splits",
        "load": "gambeson.data.catalog",
        "read_corrupted": "gambeson.data.corrupted",
    },
)
