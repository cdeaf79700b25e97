"""The commands by name, for the dispatcher. Torch is imported only once there is work to do."""

from gambeson.app.diagnosing import diagnose
from gambeson.app.listing import list_, runs
from gambeson.app.measuring import evaluate
from gambeson.app.training import resume, train

__all__ = ["diagnose", "evaluate", "list_", "resume", "runs", "train"]
