"""Huey on a relational database: pops by SELECT ... SKIP LOCKED, no results."""

import os
from contextlib import AbstractAsyncContextManager

from huey.contrib.sql_huey import SqlHuey
from marks import mark
from producer import Way, plain

huey = SqlHuey("peers", database=os.environ["PEERS_POSTGRES"], results=False)


@huey.task()
def noop(text: str) -> None:
    mark(text)


def way() -> AbstractAsyncContextManager[Way]:
    return plain(noop)
