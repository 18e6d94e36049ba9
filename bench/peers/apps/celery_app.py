"""Celery: no results, no events, no remote control, a deep prefetch."""

import os
from contextlib import AbstractAsyncContextManager

from celery import Celery
from marks import mark
from producer import Way, plain

app = Celery("celery_app", broker=os.environ["PEERS_REDIS"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=128,
    worker_enable_remote_control=False,
    worker_disable_rate_limits=True,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(text: str) -> None:
    mark(text)


def way() -> AbstractAsyncContextManager[Way]:
    return plain(noop.delay)
