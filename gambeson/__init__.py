"""gambeson: train, fine-tune, attack, measure and explain adversarially robust image classifiers."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.app.loading import LoadedRun, load_run

__version__ = "0.1.0"

__all__ = ["LoadedRun", "load_run"]

__getattr__ = lazy_exports(
    __name__,
    {
        "LoadedRun": "gambeson.app.loading",
        "load_run": "gambeson.app.loading",
    },
)
