"""Huey: blocking pops from a Redis list, no results."""

import os
from contextlib import AbstractAsyncContextManager

from huey import RedisHuey
from marks import mark
from producer import Way, plain

huey = RedisHuey("peers", url=os.environ["PEERS_REDIS"], results=False)


@huey.task()
def noop(text: str) -> None:
    mark(text)


def way() -> AbstractAsyncContextManager[Way]:
    return plain(noop)
