"""The tasks that benchmarks run."""

import time

from gotask import GoTask

app = GoTask()


@app.task
def noop(text: str) -> None:
    """Nothing: what is left is the queue's own cost."""


@app.task
def pickup() -> float:
    """When this ran, by CLOCK_MONOTONIC, which is one for all processes."""
    return time.monotonic()
