"""The workloads by name."""

from functools import partial

from benchmarks.case import Workload
from benchmarks.workloads import corruptions, data, growth, mrc, part_masks, pgd, steps

WORKLOADS: dict[str, Workload] = {
    "corruptions": Workload("the 19 common corruptions, eleven of them against one image at a time", corruptions.cases),
    "data": Workload("batches with crop and mirror, against one image at a time", data.cases),
    "growth": Workload("a training step against batch, width, attack steps and classes", growth.cases),
    "mrc": Workload("module robust criticality of every layer, against the whole network in every pass", mrc.cases),
    "part-masks": Workload("PART's masks from class-activation maps, against one image at a time", part_masks.cases),
    "pgd": Workload(
        "PGD-10 on a batch, against a plain loop and torchattacks, foolbox, ART where installed", pgd.cases
    ),
    **{
        name: Workload(f"a training step: {' and '.join(pair.what for pair in pairs)}", partial(steps.cases, name))
        for name, pairs in steps.PAIRS.items()
    },
}
