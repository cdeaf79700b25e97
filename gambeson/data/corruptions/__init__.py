"""The 19 common corruptions of CIFAR-10-C and Tiny-ImageNet-C, seeded: `corrupt(x, name, severity)`."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.data.corruptions.apply import corrupt
    from gambeson.data.corruptions.frost import read_textures
    from gambeson.data.corruptions.names import CORRUPTIONS, SETS, SEVERITIES
    from gambeson.data.corruptions.tables import CIFAR, TABLES, TINY, table_name

__all__ = ["CIFAR", "CORRUPTIONS", "SETS", "SEVERITIES", "TABLES", "TINY", "corrupt", "read_textures", "table_name"]

__getattr__ = lazy_exports(
    __name__,
    {
        "CIFAR": "gambeson.data.corruptions.tables",
        "CORRUPTIONS": "gambeson.data.corruptions.names",
        "SETS": "gambeson.data.corruptions.names",
        "SEVERITIES": "gambeson.data.corruptions.names",
        "TABLES": "gambeson.data.corruptions.tables",
        "TINY": "gambeson.data.corruptions.tables",
        "corrupt": "gambeson.data.corruptions.apply",
        "read_textures": "gambeson.data.corruptions.frost",
        "table_name": "gambeson.data.corruptions.tables",
    },
)
