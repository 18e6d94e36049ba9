"""RQ: results are dropped at once (result_ttl=0), and jobs have no description to format."""

import os
from contextlib import AbstractAsyncContextManager

from marks import mark
from producer import Way, plain
from redis import Redis
from rq import Queue


def noop(text: str) -> None:
    mark(text)


def way() -> AbstractAsyncContextManager[Way]:
    queue = Queue(connection=Redis.from_url(os.environ["PEERS_REDIS"]))
    options = {"result_ttl": 0, "description": "noop"}

    def one(text: str) -> None:
        queue.enqueue("rq_app.noop", text, **options)

    def many(texts: list[str]) -> None:
        queue.enqueue_many([Queue.prepare_data("rq_app.noop", (text,), **options) for text in texts])

    return plain(one, many)
