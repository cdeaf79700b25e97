"""Diagnoses: which layers robustness needs, which pixels decide, where the budget matters, what gradients hide."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.diagnosis.cam import CamDiagnosis, diagnose_cam
    from gambeson.diagnosis.cam_picture import draw_cam
    from gambeson.diagnosis.class_gaps import ClassGaps, class_gaps
    from gambeson.diagnosis.collapse import Collapse, Detection, Look
    from gambeson.diagnosis.criticality import adversarial_set, measure_criticality
    from gambeson.diagnosis.criticality_picture import draw_criticality
    from gambeson.diagnosis.curve_picture import draw_curve
    from gambeson.diagnosis.landscape import Landscape, grid_axis, input_landscape, weight_landscape
    from gambeson.diagnosis.landscape_picture import draw_landscapes
    from gambeson.diagnosis.masking import Masking, diagnose_masking
    from gambeson.diagnosis.masking_checks import Evidence
    from gambeson.diagnosis.moving import measure_response
    from gambeson.diagnosis.mrc import MRC, PROTOCOLS, Criticality
    from gambeson.diagnosis.overfitting import Overfitting, diagnose_overfitting
    from gambeson.diagnosis.overfitting_picture import draw_overfitting
    from gambeson.diagnosis.probes import attacked_images
    from gambeson.diagnosis.regions import PUBLISHED, SETUPS, Regions
    from gambeson.diagnosis.regions_picture import draw_regions
    from gambeson.diagnosis.response import Most, Moved, Response
    from gambeson.diagnosis.response_picture import draw_responses
    from gambeson.diagnosis.shortcuts import Removal, Shortcuts, find_shortcuts
    from gambeson.diagnosis.shortcuts_picture import draw_shortcuts
    from gambeson.diagnosis.spectra import Spectra, measure_spectra
    from gambeson.diagnosis.spectra_picture import draw_spectra
    from gambeson.diagnosis.spread import Spread, difference, spread

__all__ = [
    "MRC",
    "PROTOCOLS",
    "PUBLISHED",
    "SETUPS",
    "CamDiagnosis",
    "ClassGaps",
    "Collapse",
    "Criticality",
    "Detection",
    "Evidence",
    "Landscape",
    "Look",
    "Masking",
    "Most",
    "Moved",
    "Overfitting",
    "Regions",
    "Removal",
    "Response",
    "Shortcuts",
    "Spectra",
    "Spread",
    "adversarial_set",
    "attacked_images",
    "class_gaps",
    "diagnose_cam",
    "diagnose_masking",
    "diagnose_overfitting",
    "difference",
    "draw_cam",
    "draw_criticality",
    "draw_curve",
    "draw_landscapes",
    "draw_overfitting",
    "draw_regions",
    "draw_responses",
    "draw_shortcuts",
    "draw_spectra",
    "find_shortcuts",
    "grid_axis",
    "input_landscape",
    "measure_criticality",
    "measure_response",
    "measure_spectra",
    "spread",
    "weight_landscape",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "MRC": "gambeson.diagnosis.mrc",
        "PROTOCOLS": "gambeson.diagnosis.mrc",
        "PUBLISHED": "gambeson.diagnosis.regions",
        "SETUPS": "gambeson.diagnosis.regions",
        "CamDiagnosis": "gambeson.diagnosis.cam",
        "ClassGaps": "gambeson.diagnosis.class_gaps",
        "Collapse": "gambeson.diagnosis.collapse",
        "Criticality": "gambeson.diagnosis.mrc",
        "Detection": "gambeson.diagnosis.collapse",
        "Evidence": "gambeson.diagnosis.masking_checks",
        "Landscape": "gambeson.diagnosis.landscape",
        "Look": "gambeson.diagnosis.collapse",
        "Masking": "gambeson.diagnosis.masking",
        "Overfitting": "gambeson.diagnosis.overfitting",
        "Most": "gambeson.diagnosis.response",
        "Moved": "gambeson.diagnosis.response",
        "Regions": "gambeson.diagnosis.regions",
        "Removal": "gambeson.diagnosis.shortcuts",
        "Response": "gambeson.diagnosis.response",
        "Shortcuts": "gambeson.diagnosis.shortcuts",
        "Spectra": "gambeson.diagnosis.spectra",
        "Spread": "gambeson.diagnosis.spread",
        "adversarial_set": "gambeson.diagnosis.criticality",
        "class_gaps": "gambeson.diagnosis.class_gaps",
        "attacked_images": "gambeson.diagnosis.probes",
        "diagnose_cam": "gambeson.diagnosis.cam",
        "diagnose_masking": "gambeson.diagnosis.masking",
        "diagnose_overfitting": "gambeson.diagnosis.overfitting",
        "difference": "gambeson.diagnosis.spread",
        "draw_cam": "gambeson.diagnosis.cam_picture",
        "draw_criticality": "gambeson.diagnosis.criticality_picture",
        "draw_curve": "gambeson.diagnosis.curve_picture",
        "draw_landscapes": "gambeson.diagnosis.landscape_picture",
        "draw_overfitting": "gambeson.diagnosis.overfitting_picture",
        "draw_regions": "gambeson.diagnosis.regions_picture",
        "draw_responses": "gambeson.diagnosis.response_picture",
        "draw_shortcuts": "gambeson.diagnosis.shortcuts_picture",
        "draw_spectra": "gambeson.diagnosis.spectra_picture",
        "find_shortcuts": "gambeson.diagnosis.shortcuts",
        "grid_axis": "gambeson.diagnosis.landscape",
        "input_landscape": "gambeson.diagnosis.landscape",
        "measure_criticality": "gambeson.diagnosis.criticality",
        "measure_response": "gambeson.diagnosis.moving",
        "measure_spectra": "gambeson.diagnosis.spectra",
        "spread": "gambeson.diagnosis.spread",
        "weight_landscape": "gambeson.diagnosis.landscape",
    },
)
