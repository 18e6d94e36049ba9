"""What a type checker must say of calls to tasks. Lines that end in `# error` are wrong on purpose, and no others."""

from datetime import timedelta
from typing import Any, assert_type

from gotask import Context, GoTask, JobHandle

app = GoTask()


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(queue="mail", max_retries=5, timeout=30)
def send(to: str, *, subject: str) -> dict[str, str]:
    return {to: subject}


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task
def slow(ctx: Context, steps: int) -> str:
    return f"{ctx.id} {steps}"


@app.task(priority=2)
async def slow_async(ctx: Context, steps: int) -> float:
    return ctx.attempt / steps


@app.task
def untyped(a, b):  # type: ignore[no-untyped-def]
    return a + b


# what is right
assert_type(add.delay(1), JobHandle[int])
assert_type(add.enqueue(1, b=2).result(), int)
assert_type(send.delay("a@b.c", subject="hi").result(timeout=5), dict[str, str])
assert_type(fetch.delay("x").result(), bytes)
assert_type(slow.delay(3).result(), str)
assert_type(slow.options(delay=60, unique_key="x").enqueue(steps=3).result(), str)
add.options(delay=timedelta(minutes=5), timeout=timedelta(seconds=1)).enqueue(1)
app.task(timeout=timedelta(minutes=1), retry_delay=timedelta(seconds=5))
assert_type(slow_async.delay(3).result(), float)
assert_type(add(1, 2), int)
assert_type(slow(3), str)
assert_type(add.map([1, (1, 2), {"a": 1}]), list[JobHandle[int]])
assert_type(app.enqueue("anything", {"a": 1}).result(), Any)
untyped.delay(1, 2)
untyped.delay(a=1, b=2).result()


async def awaited() -> None:
    assert_type(await add.aenqueue(1), JobHandle[int])
    assert_type(await add.delay(1), int)
    assert_type(await fetch("x"), bytes)
    assert_type(await slow_async(3), float)
    assert_type(await slow_async.delay(3), float)
    await add.aenqueue("1")  # error


# what is not
add.delay("1")  # error
add.delay()  # error
add.delay(1, c=2)  # error
add.enqueue(1, 2, 3)  # error
add("1")  # error
send.delay("a@b.c", "hi")  # error
send.delay(to="a@b.c", subject=1)  # error
slow.delay("3")  # error
slow.delay(Context(), 3)  # error
add.options(dely=60)  # error
add.options(delay="60")  # error
add.options(delay=60).enqueue("1")  # error
fetch.delay(1).result()  # error
text: str = add.delay(1).result()  # error
app.task(max_retry=3)  # error
app.task(timeout="3")  # error
app.enqueue("anything", {}, dely=3)  # error
