"""Dramatiq: its Redis broker without middleware, which the no-op needs none of."""

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from marks import mark
from producer import plain

dramatiq.set_broker(RedisBroker(url=os.environ["PEERS_REDIS"], middleware=[]))


@dramatiq.actor
def noop(text: str) -> None:
    mark(text)


def way():
    return plain(noop.send)
