"""For development: a child that watches the source files and asks the arbiter to roll when one changes."""

import logging
import os
import signal
from typing import Final

from gotask.errors import NotConfigured
from gotask.node.worker import take_signals

QUIET_MS: Final = 200  #: milliseconds without a change before a set of changes counts as whole: editors write in steps
log = logging.getLogger("gotask.node")


def run() -> None:
    """Watch the current folder until killed. Raises NotConfigured when the library for it is missing."""
    take_signals({})
    try:
        from watchfiles import PythonFilter, watch
    except ModuleNotFoundError as error:
        raise NotConfigured("--reload needs watchfiles, which is not installed: pip install watchfiles.") from error
    for changes in watch(os.getcwd(), watch_filter=PythonFilter(), step=QUIET_MS, raise_interrupt=False):
        log.info("%s changed.", ", ".join(sorted({os.path.relpath(path) for _, path in changes})[:3]))
        os.kill(os.getppid(), signal.SIGHUP)
