"""How fast the embedded storage is by itself: `python bench/engine.py [what ...]`.

    drain     one process, one thread: enqueue in batches, then lease 1000 and settle 1000 until empty
    depth     the rate of the first 100,000 of a drain from 1,000,000, against a drain from 10,000; bytes per queued job
    producer  one-by-one enqueues while another process drains: median, p99, worst

Figures are medians of several rounds, in jobs a second for lease and settle together.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from time import perf_counter

from msgspec import Raw

from gotask.backends import Backend, open
from gotask.model import NewJob, Settlement
from gotask.states import Event, State

BATCH = 1000
PAYLOAD = Raw(b'{"to": "someone@example.org", "subject": "' + b"x" * 56 + b'"}')  # 100 bytes


def fill(store: Backend, n: int) -> float:
    """Enqueue `n` jobs in batches; seconds."""
    start = perf_counter()
    for _ in range(0, n, BATCH):
        store.enqueue_many([NewJob(type="noop", payload=PAYLOAD) for _ in range(BATCH)])
    return perf_counter() - start


def drain(store: Backend, most: int) -> tuple[float, float]:
    """Lease and ack up to `most` jobs; seconds of each."""
    leasing = settling = 0.0
    while most > 0:
        start = perf_counter()
        jobs = store.lease({"default": BATCH}, "bench-1234:0123456789abcdef", 30.0)
        leased = perf_counter()
        if not jobs:
            break
        store.settle_many([Settlement(job.id, job.lease, Event.ACK, result=b"null") for job in jobs])
        settling += perf_counter() - leased
        leasing += leased - start
        most -= len(jobs)
    return leasing, settling


def fresh(scheme: str, folder: str, number: int) -> tuple[str, str]:
    """A URL of a new store, and its path."""
    if scheme == "memory":
        name = f"bench-{os.getpid()}-{number}"
        return f"memory://{name}", f"/dev/shm/gotask-{os.geteuid()}/{name}.db"
    path = os.path.join(folder, f"{number}.db")
    return f"sqlite:///{path}", path


def forget(path: str) -> None:
    for end in ("", "-wal", "-shm", "-bell", "-turn"):
        if os.path.exists(path + end):
            os.unlink(path + end)


def bench_drain(scheme: str, folder: str, n: int = 100_000, rounds: int = 5) -> None:
    figures = []
    for number in range(rounds):
        url, path = fresh(scheme, folder, number)
        store = open(url)
        filling = fill(store, n)
        leasing, settling = drain(store, n)
        figures.append((n / (leasing + settling), n / filling, leasing / n * 1e6, settling / n * 1e6))
        store.close()
        forget(path)
    both, filled, lease, settle = (statistics.median(column) for column in zip(*figures, strict=True))
    best = max(figures)[0]
    print(f"{scheme:7} drain    {both:9,.0f}/s, best {best:9,.0f}/s  (lease {lease:.2f} us, settle {settle:.2f} us)")
    print(f"{scheme:7} enqueue  {filled:9,.0f}/s in batches of {BATCH}")


def bench_depth(scheme: str, folder: str) -> None:
    rates = {}
    for number, n in enumerate((10_000, 1_000_000)):
        rounds = 10 if n == 10_000 else 1
        spent = 0.0
        for again in range(rounds):
            url, path = fresh(scheme, folder, 100 + 10 * number + again)
            store = open(url)
            fill(store, n)
            size = sum(os.path.getsize(path + end) for end in ("", "-wal")) / n
            spent += sum(drain(store, 100_000))
            store.close()
            forget(path)
        rates[n] = min(n * rounds, 100_000) / spent
        print(f"{scheme:7} depth {n:9,}: {rates[n]:9,.0f}/s  {size:.0f} bytes on disk per queued job")
    print(f"{scheme:7} depth    deep / shallow = {rates[1_000_000] / rates[10_000]:.2f}")


def _drainer(url: str, stop: "multiprocessing.synchronize.Event") -> None:
    store = open(url)
    while not stop.is_set():
        drain(store, 50_000)
    store.close()


def bench_producer(scheme: str, folder: str, n: int = 3000) -> None:
    url, path = fresh(scheme, folder, 900)
    store = open(url)
    fill(store, 400_000)
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    other = spawn.Process(target=_drainer, args=(url, stop))
    other.start()
    while not any(state is State.SUCCESS for _, state in store.counts()):
        pass
    taken: list[float] = []
    while len(taken) < n and (len(taken) % 50 or store.counts().get(("default", State.PENDING), 0) > 20_000):
        start = perf_counter()
        store.enqueue_many([NewJob(type="noop", payload=PAYLOAD)])
        taken.append((perf_counter() - start) * 1000)
    left = sum(n for (_, state), n in store.counts().items() if state is State.PENDING)
    stop.set()
    other.join()
    taken.sort()
    n = len(taken)
    print(
        f"{scheme:7} producer beside a drain: median {taken[n // 2]:.2f} ms, p99 {taken[n * 99 // 100]:.2f} ms, "
        f"worst {taken[-1]:.2f} ms ({n:,} enqueues; {left:,} still queued)"
    )
    store.close()
    forget(path)


WHAT: dict[str, Callable[[str, str], None]] = {"drain": bench_drain, "depth": bench_depth, "producer": bench_producer}

if __name__ == "__main__":
    chosen = [word for word in sys.argv[1:] if word in WHAT] or list(WHAT)
    schemes = [word for word in sys.argv[1:] if word not in WHAT] or ["memory", "sqlite"]
    with tempfile.TemporaryDirectory(dir=os.environ.get("GOTASK_BENCH_DIR")) as folder:
        for what in chosen:
            for scheme in schemes:
                WHAT[what](scheme, folder)
