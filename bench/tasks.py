"""The tasks that benchmarks run."""

import time

from gotask import GoTask

app = GoTask()


@app.task
def noop(text: str) -> None:
    """Nothing: what is left is the queue's own cost."""


@app.task
def pickup(sent: float) -> float:
    """Seconds from just before the enqueue to here; CLOCK_MONOTONIC is one for all processes."""
    return time.monotonic() - sent
