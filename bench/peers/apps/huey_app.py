"""Huey: blocking pops from a Redis list, no results."""

import os

from huey import RedisHuey
from marks import mark
from producer import plain

huey = RedisHuey("peers", url=os.environ["PEERS_REDIS"], results=False)


@huey.task()
def noop(text: str) -> None:
    mark(text)


def way():
    return plain(noop)
