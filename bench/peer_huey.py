"""A Huey app for the comparison: the same no-op task, results off, which is its fastest way."""

import os

from huey import SqliteHuey

huey = SqliteHuey("bench", filename=os.environ["HUEY_DB"], results=False)


@huey.task()
def noop(text: str) -> None:
    pass
