"""The commands by name: a module is imported when its command is called, and torch once there is work to do."""

from typing import TYPE_CHECKING

from gambeson.core.lazy import lazy_exports

if TYPE_CHECKING:
    from gambeson.app.corrupting import corruptions
    from gambeson.app.demo import demo
    from gambeson.app.diagnosing import diagnose
    from gambeson.app.doctoring import doctor
    from gambeson.app.importing import import_
    from gambeson.app.lines import interpolate
    from gambeson.app.listing import list_, runs
    from gambeson.app.measuring import evaluate
    from gambeson.app.reporting import report
    from gambeson.app.sweeping import sweep
    from gambeson.app.training import resume, train
    from gambeson.app.tuning import finetune

__all__ = [
    "corruptions",
    "demo",
    "diagnose",
    "doctor",
    "evaluate",
    "finetune",
    "import_",
    "interpolate",
    "list_",
    "report",
    "resume",
    "runs",
    "sweep",
    "train",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "corruptions": "gambeson.app.corrupting",
        "demo": "gambeson.app.demo",
        "diagnose": "gambeson.app.diagnosing",
        "doctor": "gambeson.app.doctoring",
        "evaluate": "gambeson.app.measuring",
        "finetune": "gambeson.app.tuning",
        "import_": "gambeson.app.importing",
        "interpolate": "gambeson.app.lines",
        "list_": "gambeson.app.listing",
        "report": "gambeson.app.reporting",
        "resume": "gambeson.app.training",
        "runs": "gambeson.app.listing",
        "sweep": "gambeson.app.sweeping",
        "train": "gambeson.app.training",
    },
)
