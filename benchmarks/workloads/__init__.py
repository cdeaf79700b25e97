"""The workloads by name."""

from benchmarks.case import Workload
from benchmarks.workloads import part_masks

WORKLOADS: dict[str, Workload] = {
    "part-masks": Workload("PART's masks from class-activation maps, against one image at a time", part_masks.cases),
}
