"""The tasks that crash tests run. Each body says in a witness file that it began and ended: a record that survives SIGKILL
and owes nothing to what GoTask itself writes down."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import sys
import time

from gotask import Context, GoTask, Retry, Snooze
from tests.crash.answer import answer

app = GoTask()
_witness = os.open(os.environ["WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(what: str, ctx: Context) -> None:
    os.write(_witness, f"{what} {ctx.id} {ctx.lease} {os.getpid()} {time.monotonic_ns()}\n".encode())


@app.task(max_retries=0)
def work(n: int, ms: float, ctx: Context) -> str:
    note("start", ctx)
    if ms:
        time.sleep(ms / 1000)
    note("end", ctx)
    return answer(n)


@app.task(max_retries=1, retry_delay=0.05)
def flaky(n: int, ctx: Context) -> str:
    note("start", ctx)
    note("end", ctx)
    if ctx.retry_count == 0:
        raise RuntimeError("the first run always fails")
    return answer(n)


@app.task
def poison(how: str, ctx: Context) -> None:
    note("start", ctx)
    match how:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()


@app.task(max_retries=0)
def raiser(how: str, ctx: Context) -> None:
    note("start", ctx)
    match how:
        case "sys.exit":
            sys.exit(3)
        case "keyboard":
            raise KeyboardInterrupt
        case "recursion":
            _recurse()
        case "memory":
            raise MemoryError


def _recurse() -> None:
    _recurse()


@app.task(timeout=0.5, max_retries=0)
def stubborn(ctx: Context) -> None:
    """Ignores its time limit: nothing but a kill ends it."""
    note("start", ctx)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


@app.task(max_retries=0)
async def nap_until(path: str, ctx: Context) -> None:
    """Sleeps until there is such a file."""
    note("start", ctx)
    while not os.path.exists(path):
        await asyncio.sleep(0.05)
    note("end", ctx)


@app.task(max_retries=0)
async def nap(n: int, seconds: float, ctx: Context) -> str:
    note("start", ctx)
    await asyncio.sleep(seconds)
    note("end", ctx)
    return answer(n)


@app.task(timeout=0.5, max_retries=1, retry_delay=0.05)
def spin(ctx: Context) -> None:
    """Runs past its limit in Python code, as a thread can be interrupted only there."""
    note("start", ctx)
    while True:
        time.sleep(0.01)


@app.task(timeout=0.5, max_retries=0)
def oversleep(ctx: Context) -> None:
    """Runs past its limit in a system call, which a signal ends in the main thread."""
    note("start", ctx)
    time.sleep(60)


@app.task(timeout=0.5, max_retries=0)
async def overnap(ctx: Context) -> None:
    note("start", ctx)
    await asyncio.sleep(60)


@app.task
def steps(count: int, ctx: Context) -> int:
    """Tells its progress, until it is told to go on."""
    for step in range(1, count + 1):
        ctx.progress(100 * step / count, f"step {step}")
        time.sleep(0.02)
    return count


@app.task
def big(size: int) -> str:
    return "x" * size


@app.task
def fork_and_die() -> int:
    """A child of a task's own that ends before anybody waits for it."""
    pid = os.fork()
    if pid == 0:
        if os.fork() == 0:
            time.sleep(0.3)
        os._exit(0)
    os.waitpid(pid, 0)
    return os.getpid()


@app.task(max_retries=0)
async def hostile_coroutine(how: str) -> str:
    match how:
        case "child exits":

            async def child() -> None:
                sys.exit(5)

            asyncio.get_running_loop().create_task(child())
            await asyncio.sleep(0.1)
    return "survived"


@app.task(max_retries=0)
def hostile(how: str, ctx: Context) -> None:
    """What no task should do, and what must cost nobody but itself anything."""
    match how:
        case "retry in a word":
            raise Retry("5")  # type: ignore[arg-type]
        case "retry never":
            raise Retry(float("inf"))
        case "snooze for no number":
            raise Snooze(float("nan"))
        case "progress in bytes":
            ctx.progress(50, b"half")  # type: ignore[arg-type]
        case "stray bytes":
            raise ValueError("\udcff")
        case "unprintable":
            raise Unprintable
        case "real-time signal":
            os.kill(os.getpid(), 40)
            time.sleep(5)
        case "code of a configuration error":
            os._exit(78)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@app.task(timeout=0.5, max_retries=0)
def late_exception() -> None:
    """Raises of its own at the very moment at which its limit strikes."""
    import queue

    queue.SimpleQueue().get(timeout=1)


@app.task
def shout(text: str) -> None:
    print(text)


@app.task(timeout=10, max_retries=0)
def ends_its_own_child() -> int:
    """Forks a process and terminates it, as `multiprocessing` does."""
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    time.sleep(0.3)  # Python drops what arrives while it is still forking
    child.terminate()
    child.join(5)
    return child.exitcode or 0


@app.task
def echo_size(text: str) -> int:
    return len(text)


_kept: list[bytes] = []


@app.task
def hoard(megabytes: int) -> int:
    """Leaks memory, as user code does."""
    _kept.append(b"x" * (megabytes << 20))
    return os.getpid()
