"""Dramatiq: its Redis broker without middleware, which the no-op needs none of."""

import os
from contextlib import AbstractAsyncContextManager

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from marks import mark
from producer import Way, plain

dramatiq.set_broker(RedisBroker(url=os.environ["PEERS_REDIS"], middleware=[]))


@dramatiq.actor
def noop(text: str) -> None:
    mark(text)


def way() -> AbstractAsyncContextManager[Way]:
    return plain(noop.send)
