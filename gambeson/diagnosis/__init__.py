"""Diagnoses: which layers robustness needs, which pixels decide, where the budget matters, what gradients hide."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.diagnosis.cam import CamDiagnosis, diagnose_cam
    from gambeson.diagnosis.cam_picture import draw_cam
    from gambeson.diagnosis.criticality import MRC, PROTOCOLS, Criticality, adversarial_set, measure_criticality
    from gambeson.diagnosis.criticality_picture import draw_criticality
    from gambeson.diagnosis.curve_picture import draw_curve
    from gambeson.diagnosis.masking import Masking, diagnose_masking
    from gambeson.diagnosis.masking_checks import Evidence
    from gambeson.diagnosis.regions import PUBLISHED, SETUPS, Regions
    from gambeson.diagnosis.regions_picture import draw_regions
    from gambeson.diagnosis.spread import Spread, difference, spread

__all__ = [
    "MRC",
    "PROTOCOLS",
    "PUBLISHED",
    "SETUPS",
    "CamDiagnosis",
    "Criticality",
    "Evidence",
    "Masking",
    "Regions",
    "Spread",
    "adversarial_set",
    "diagnose_cam",
    "diagnose_masking",
    "difference",
    "draw_cam",
    "draw_criticality",
    "draw_curve",
    "draw_regions",
    "measure_criticality",
    "spread",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "MRC": "gambeson.diagnosis.criticality",
        "PROTOCOLS": "gambeson.diagnosis.criticality",
        "PUBLISHED": "gambeson.diagnosis.regions",
        "SETUPS": "gambeson.diagnosis.regions",
        "CamDiagnosis": "gambeson.diagnosis.cam",
        "Criticality": "gambeson.diagnosis.criticality",
        "Evidence": "gambeson.diagnosis.masking_checks",
        "Masking": "gambeson.diagnosis.masking",
        "Regions": "gambeson.diagnosis.regions",
        "Spread": "gambeson.diagnosis.spread",
        "adversarial_set": "gambeson.diagnosis.criticality",
        "diagnose_cam": "gambeson.diagnosis.cam",
        "diagnose_masking": "gambeson.diagnosis.masking",
        "difference": "gambeson.diagnosis.spread",
        "draw_cam": "gambeson.diagnosis.cam_picture",
        "draw_criticality": "gambeson.diagnosis.criticality_picture",
        "draw_curve": "gambeson.diagnosis.curve_picture",
        "draw_regions": "gambeson.diagnosis.regions_picture",
        "measure_criticality": "gambeson.diagnosis.criticality",
        "spread": "gambeson.diagnosis.spread",
    },
)
