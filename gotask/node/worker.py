"""The child that runs user code: load the app, say what it can run, then claim and run until told to stop.

It has no connection to any store but those of its tasks. Signals that end a program are the arbiter's business; here they do
nothing, so that a Ctrl-C in the terminal reaches the one who knows how to stop without losing work.
"""

import importlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

from gotask._core.ring import Segment
from gotask.errors import GotaskError, NotConfigured
from gotask.node.concurrent import ConcurrentWorker
from gotask.node.notices import Notices, TaskSpec
from gotask.node.run import Runner
from gotask.node.serial import SerialWorker
from gotask.settings import WorkerSettings
from gotask.task import Tasks

BUILTIN: Final = "gotask.builtin:app"  #: the tasks of a node that is given no app
READY: Final = signal.SIGRTMIN  #: sent to the arbiter once tasks are loaded; real-time signals queue, so none is lost
ASKED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  #: what people and init systems send to a whole node
OOM_ADJUST: Final = 300  #: the kernel, short of memory, should take a worker before arbiter, dispatcher or server
log = logging.getLogger("gotask.node")


def load_tasks(spec: str) -> Tasks:
    """The tasks of the app that `spec` (package.module:app) names. Raises NotConfigured with what is wrong about it."""
    module_name, _, attribute = (spec or BUILTIN).partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except GotaskError as error:
        raise NotConfigured(f"The app {spec!r} cannot be loaded: {error}") from error
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, ModuleNotFoundError) else f" ({where.filename}, line {where.lineno})"
        raise NotConfigured(f"The app {spec!r} cannot be imported: {type(error).__name__}: {error}{place}.") from error
    app: Any = getattr(module, attribute or "app", None)
    tasks = getattr(app, "tasks", None)
    if not isinstance(tasks, Tasks):
        raise NotConfigured(f"There is no GoTask app called {attribute or 'app'!r} in {module_name}; write it as module:app.")
    return tasks


def run(
    segment: Segment,
    owner: int,
    slots: int,
    settings: WorkerSettings,
    notices: Notices,
    tasks: Tasks | None,
    join: Callable[[Any], Any],
) -> None:
    """Be a worker. `tasks` are those of an app loaded before the fork; `join` is for tasks that complete their job."""
    take_signals({})
    with suppress(OSError):  # some containers forbid it
        Path("/proc/self/oom_score_adj").write_text(str(OOM_ADJUST))
    segment.keep_from_children()
    if tasks is None:
        tasks = load_tasks(settings.app)
    notices.publish([TaskSpec(task.type, task.queue, task.rules) for task in tasks.values()])
    segment.ring_reports()
    say_ready()
    runner = Runner(segment, owner, tasks, notices, join)
    if slots == 1:
        SerialWorker(runner, settings.max_jobs, settings.max_memory).run()
    else:
        ConcurrentWorker(runner, slots, settings.max_jobs, settings.max_memory).run()


def say_ready() -> None:
    """Tell the arbiter that this child can do its work: if it dies now, the next one need not wait."""
    os.kill(os.getppid(), READY)


def take_signals(handlers: Mapping[int, Callable[[], None]]) -> None:
    """Say what signals mean to this child of the arbiter, and unblock them; those not named mean nothing to it.

    They get a handler all the same, and not SIG_IGN, which programs started by a task would inherit. A process that a
    task forked inherits the handler, but is no part of the node: there the signal does what it does to any program.
    """
    own = os.getpid()

    def take(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != own:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif number in handlers:
            handlers[number]()

    for number in ASKED:
        signal.signal(number, take)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
