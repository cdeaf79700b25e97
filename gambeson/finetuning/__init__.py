"""Fine-tuning of robust models: RiFT, and the straight lines between two checkpoints."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.finetuning.interpolate import (
        Line,
        Point,
        choose_alpha,
        interpolated,
        parse_alphas,
        reestimate_statistics,
        walk,
    )
    from gambeson.finetuning.line_picture import draw_line
    from gambeson.finetuning.rift import choose_layers, rift_recipe

__all__ = [
    "Line",
    "Point",
    "choose_alpha",
    "choose_layers",
    "draw_line",
    "interpolated",
    "parse_alphas",
    "reestimate_statistics",
    "rift_recipe",
    "walk",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "Line": "gambeson.finetuning.interpolate",
        "Point": "gambeson.finetuning.interpolate",
        "choose_alpha": "gambeson.finetuning.interpolate",
        "choose_layers": "gambeson.finetuning.rift",
        "draw_line": "gambeson.finetuning.line_picture",
        "interpolated": "gambeson.finetuning.interpolate",
        "parse_alphas": "gambeson.finetuning.interpolate",
        "reestimate_statistics": "gambeson.finetuning.interpolate",
        "rift_recipe": "gambeson.finetuning.rift",
        "walk": "gambeson.finetuning.interpolate",
    },
)
