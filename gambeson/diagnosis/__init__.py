"""Diagnoses: what the maps behind a method look like, and whether where the budget lies matters."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.diagnosis.cam import CamDiagnosis, diagnose_cam
    from gambeson.diagnosis.cam_picture import draw_cam
    from gambeson.diagnosis.regions import PUBLISHED, SETUPS, Regions
    from gambeson.diagnosis.regions_picture import draw_regions
    from gambeson.diagnosis.spread import Spread, difference, spread

__all__ = [
    "PUBLISHED",
    "SETUPS",
    "CamDiagnosis",
    "Regions",
    "Spread",
    "diagnose_cam",
    "difference",
    "draw_cam",
    "draw_regions",
    "spread",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "PUBLISHED": "gambeson.diagnosis.regions",
        "SETUPS": "gambeson.diagnosis.regions",
        "CamDiagnosis": "gambeson.diagnosis.cam",
        "Regions": "gambeson.diagnosis.regions",
        "Spread": "gambeson.diagnosis.spread",
        "diagnose_cam": "gambeson.diagnosis.cam",
        "difference": "gambeson.diagnosis.spread",
        "draw_cam": "gambeson.diagnosis.cam_picture",
        "draw_regions": "gambeson.diagnosis.regions_picture",
        "spread": "gambeson.diagnosis.spread",
    },
)
