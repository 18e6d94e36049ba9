"""What concerns Redis alone: bytes per job, a thousand idle nodes, the shards of a Cluster, and where its time goes."""

import resource
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from uuid import uuid4

from bench.bare_redis import BareRedis
from bench.fleet import IdleNode, live
from bench.node import PAYLOAD, fill
from gotask import backends
from gotask.backends import Backend
from gotask.model import NewJob, Settlement
from gotask.states import Event
from tests.servers.fixtures import Servers
from tests.servers.redis import Redis

JOBS = 100_000
NODES = 1000
IDLE_S = 30.0
BATCH = 500


def cpu(server: Redis) -> float:
    """Seconds that the main thread of a Redis has worked."""
    facts = server.facts("INFO", "cpu")
    return float(facts["used_cpu_user_main_thread"]) + float(facts["used_cpu_sys_main_thread"])


def lease_and_settle(backend: Backend, count: int) -> None:
    while count > 0:
        jobs = backend.lease({"default": BATCH}, "bench-0123456789abcdef", 30.0)
        backend.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs])
        count -= len(jobs)


def median_of(rounds: int, run: Callable[[], float]) -> float:
    return sorted(run() for _ in range(rounds))[rounds // 2]


def test_enqueue(benchmark, figure, servers: Servers) -> None:
    # Given one process that has its jobs ready
    backend = backends.open(f"{servers.redis.url}?prefix=bench-{uuid4().hex[:8]}")
    batch = [NewJob(type="noop", payload=PAYLOAD) for _ in range(10_000)]

    def in_batches() -> float:
        begun = time.perf_counter()
        backend.enqueue_many(batch)
        return len(batch) / (time.perf_counter() - begun)

    def one_by_one() -> float:
        begun = time.perf_counter()
        for new in batch[:2000]:
            backend.enqueue_many([new])
        return 2000 / (time.perf_counter() - begun)

    bare = BareRedis(servers.redis)
    payload = bytes(PAYLOAD)
    ways = (in_batches, one_by_one, lambda: bare.fill(payload, 10_000), lambda: bare.one_by_one(payload, 2000))
    one_by_one()
    # When it hands them in, in turn with the least that anybody must do
    rounds = benchmark.pedantic(lambda: [[way() for way in ways] for _ in range(9)], rounds=1)
    # Then that many a second are accepted
    batches, singles, bare_batches, bare_singles = (median(rates) for rates in zip(*rounds, strict=True))
    figure("enqueue to the storage in batches, redis", batches, "jobs/s", ">= 100,000")
    figure("enqueue to the storage one by one, redis", singles, "jobs/s", ">= 8,000")
    figure("bare: three writes per job in pipelines, redis", bare_batches, "jobs/s", "")
    figure("bare: three writes per job one by one, redis", bare_singles, "jobs/s", "")
    figure("enqueue one by one to that, redis", 100 * singles / bare_singles, "%", "")
    bare.close()
    backend.close()


def test_lease_and_settle(benchmark, figure, servers: Servers) -> None:
    # Given one client that leases and ends jobs, and the least that anybody must do
    backend = backends.open(f"{servers.redis.url}?prefix=bench-{uuid4().hex[:8]}")
    bare = BareRedis(servers.redis)

    def ours() -> float:
        fill(backend, 10_000)
        begun = time.perf_counter()
        lease_and_settle(backend, 10_000)
        return 10_000 / (time.perf_counter() - begun)

    def least() -> float:
        bare.fill(bytes(PAYLOAD), 10_000)
        return bare.drain(BATCH)

    rounds = benchmark.pedantic(lambda: [(ours(), least()) for _ in range(9)], rounds=1)
    rate, limit = (median(rates) for rates in zip(*rounds, strict=True))
    figure("lease and settle by one client, redis", rate, "jobs/s", "")
    figure("bare: the same in pipelines of plain commands, redis", limit, "jobs/s", "")
    bare.close()
    backend.close()


def test_bytes_per_queued_job(benchmark, figure, start_redis) -> None:
    server: Redis = start_redis()
    backend = backends.open(server.url)
    fill(backend, 10)
    before = int(server.facts("INFO", "memory")["used_memory"])
    benchmark.pedantic(lambda: fill(backend, JOBS), rounds=1)
    used = int(server.facts("INFO", "memory")["used_memory"]) - before
    figure("memory per queued job, redis", used / JOBS, "bytes", "<= 600")
    backend.close()


def test_a_thousand_idle_nodes(benchmark, figure, start_redis) -> None:
    # Given a thousand nodes of ten slots, each with its connections
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server: Redis = start_redis(maxclients=6000)
    nodes = [IdleNode(server.url, number, 10) for number in range(NODES)]
    # When nothing happens for a while
    before = cpu(server)
    calls = benchmark.pedantic(lambda: live(nodes, IDLE_S), rounds=1)
    # Then Redis is busy for this share of the time
    figure(f"redis under {NODES:,} idle nodes", 100 * (cpu(server) - before) / IDLE_S, "% of a core", "<= 50")
    figure("calls of an idle node", calls / NODES * 60 / IDLE_S, "a minute", "<= 60")
    for node in nodes:
        node.close()


def test_shards_of_a_cluster(benchmark, figure, servers: Servers) -> None:
    """Throughput as if each of three masters had a core of its own: jobs by the time of the busiest.

    All of them share two cores here, so the wall clock cannot show it; the time each of them works can.
    """
    masters = servers.cluster.nodes
    rates: dict[int, float] = {}

    def drain(shards: int) -> float:
        backend = backends.open(f"{servers.cluster.url}?prefix=bench-{uuid4().hex[:8]}&shards={shards}")
        before = [cpu(master) for master in masters]
        fill(backend, JOBS // 4)
        lease_and_settle(backend, JOBS // 4)
        backend.close()
        return JOBS // 4 / max(cpu(master) - begun for master, begun in zip(masters, before, strict=True))

    def all_of_them() -> None:
        for shards in (1, 3, 6, 12):
            rates[shards] = median_of(3, lambda shards=shards: drain(shards))  # type: ignore[misc]

    benchmark.pedantic(all_of_them, rounds=1)
    for shards, rate in rates.items():
        figure(
            f"three masters, {shards} shards: a core each, to one shard",
            rate / rates[1],
            "times",
            ">= 2.2" if shards > 1 else "",
        )


def test_where_the_time_goes(benchmark, figure, start_redis) -> None:
    """Microseconds of Redis per job: each verb, and the commands that the script calls for it."""
    server: Redis = start_redis(appendonly=True, appendfsync="everysec", auto_aof_rewrite_percentage=0)
    backend = backends.open(server.url)
    fill(backend, 1000)
    lease_and_settle(backend, 1000)
    jobs = []

    def lease() -> None:
        while found := backend.lease({"default": BATCH}, "bench-0123456789abcdef", 30.0):
            jobs.append(found)

    def settle() -> None:
        for found in jobs:
            backend.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in found])

    def life() -> None:
        for verb, act in (("enqueue", lambda: fill(backend, JOBS)), ("lease", lease), ("settle", settle)):
            server.command("CONFIG", "RESETSTAT")
            before = cpu(server)
            act()
            figure(f"redis, {verb}: its time per job", 1e6 * (cpu(server) - before) / JOBS, "µs", "")
            for command, spent in commands(server).most_common(5):
                figure(f"redis, {verb}: of which {command}", spent / JOBS, "µs", "")

    benchmark.pedantic(life, rounds=1)
    slowest = max((int(entry[2]) for entry in server.command("SLOWLOG", "GET", 10)), default=0)
    figure("redis, the slowest call that its SLOWLOG has", slowest / 1000, "ms", "")
    backend.close()


def commands(server: Redis) -> Counter[str]:
    """Microseconds of each command that the script has called since the statistics were reset."""
    spent: Counter[str] = Counter()
    for name, facts in server.facts("INFO", "commandstats").items():
        if not name.startswith(("cmdstat_evalsha", "cmdstat_config", "cmdstat_info")):
            spent[name.removeprefix("cmdstat_").upper()] = int(facts.split("usec=")[1].split(",")[0])
    return spent
