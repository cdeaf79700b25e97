"""The commands by name, for the dispatcher. Torch is imported only once there is work to do."""

from gambeson.app.corrupting import corruptions
from gambeson.app.diagnosing import diagnose
from gambeson.app.doctoring import doctor
from gambeson.app.importing import import_
from gambeson.app.lines import interpolate
from gambeson.app.listing import list_, runs
from gambeson.app.measuring import evaluate
from gambeson.app.training import resume, train
from gambeson.app.tuning import finetune

__all__ = [
    "corruptions",
    "diagnose",
    "doctor",
    "evaluate",
    "finetune",
    "import_",
    "interpolate",
    "list_",
    "resume",
    "runs",
    "train",
]
