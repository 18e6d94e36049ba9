"""GoTask: a task queue that runs with nothing else installed and loses nothing it accepted."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gotask.app import GoTask, JobOptions
    from gotask.context import Context
    from gotask.errors import (
        BackendDown,
        Cancel,
        Cancelled,
        Conflict,
        GotaskError,
        InvalidInput,
        JobFailed,
        LeaseLost,
        NotFound,
        ResultTimeout,
        Retry,
        Snooze,
        TimeLimit,
    )
    from gotask.handle import JobHandle, QueueHandle
    from gotask.states import State
    from gotask.task import Misfit, Task

__all__ = [
    "BackendDown",
    "Cancel",
    "Cancelled",
    "Conflict",
    "Context",
    "GoTask",
    "GotaskError",
    "InvalidInput",
    "JobFailed",
    "JobHandle",
    "JobOptions",
    "LeaseLost",
    "Misfit",
    "NotFound",
    "QueueHandle",
    "ResultTimeout",
    "Retry",
    "Snooze",
    "State",
    "Task",
    "TimeLimit",
    "__version__",
]

#: where to look for a public name at run time: a command or a node should not load what only producers need
_MODULES = ("errors", "context", "states", "task", "handle", "app")

if not TYPE_CHECKING:  # else a misspelt import would pass for an object

    def __getattr__(name: str) -> object:
        if name in __all__:
            for module in _MODULES:
                found = vars(import_module(f"gotask.{module}")).get(name)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module 'gotask' has no attribute {name!r}")
