"""GoTask as it comes."""

import os
from contextlib import AbstractAsyncContextManager

from marks import mark
from producer import Way, plain

from gotask import GoTask

app = GoTask(os.environ["GOTASK_STORAGE"])


@app.task
def noop(text: str) -> None:
    mark(text)


def way() -> AbstractAsyncContextManager[Way]:
    def many(texts: list[str]) -> None:
        app.enqueue_many({"type": "noop", "payload": {"text": text}} for text in texts)

    return plain(noop.enqueue, many)
