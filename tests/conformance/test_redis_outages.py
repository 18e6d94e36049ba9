"""Redis servers that are away in part, or take no writes: what can go on does, and the rest is told in one sentence."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest
from lab import LEASE_S, new, until
from msgspec import Raw
from redis import exceptions as said

from gotask.backends import redis
from gotask.backends.redis import server as redis_server
from gotask.errors import BackendDown
from gotask.model import Beat, Held, NewJob, Settlement
from gotask.states import Event, State
from tests.servers.fixtures import Servers, StartRedis
from tests.servers.fleets import Cluster, Sentinels
from tests.servers.processes import need
from tests.servers.redis import Redis

THREADS: Final = 8
SHARDS: Final = 6
ROOT: Final = "gotask:{0}"


@pytest.fixture(autouse=True)
def _redis() -> None:
    need("redis-server")


def clients(*nodes: Redis) -> int:
    return sum(int(node.facts("INFO", "clients")["connected_clients"]) for node in nodes)


def refused(call: Callable[[], Any]) -> str:
    """The sentence of a refusal that says that nothing was written, and that the next call will not fare better."""
    with pytest.raises(BackendDown) as caught:
        call()
    assert caught.value.refused, caught.value
    return str(caught.value)


# connections


def test_calls_and_listeners_of_a_cluster_do_not_notice_that_others_reconnect(servers: Servers) -> None:
    # Given threads that call, and some that listen, while another one reconnects all the time
    nodes = servers.cluster.nodes
    before = clients(*nodes)
    with closing(redis.open(f"{servers.cluster.url}?prefix=forget&shards={SHARDS}")) as store:
        store.counts()
        over, troubles = threading.Event(), list[BaseException]()

        def again(work: Callable[[], object]) -> None:
            try:
                while not over.is_set():
                    work()
            except BaseException as error:  # also one that would end a thread unheard
                troubles.append(error)

        def listen() -> None:
            with closing(store.watch(["queue:default", "job:x"])) as watch:
                watch.wait(0.2)

        def forget() -> None:
            store._server._line.forget(said.ReadOnlyError("x"))
            time.sleep(0.005)

        works = [*[lambda: store.enqueue_many([new()])] * THREADS, listen, listen, forget]
        threads = [threading.Thread(target=again, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        time.sleep(3.0)
        # Then none of them fails
        over.set()
        for thread in threads:
            thread.join()
        assert troubles == []
        # And the connections of what was given up are closed, as the last one is used by nobody
        until(lambda: clients(*nodes) <= before + len(nodes) * len(threads), "connections are closed")
    until(lambda: clients(*nodes) <= before, "all connections are closed")


def test_a_listener_whose_connection_is_pulled_away_listens_anew(start_redis: StartRedis) -> None:
    with closing(redis.open(start_redis().url)) as store:
        watch = store.watch(["queue:default"])
        # When redis-py's state changes under a listener, then it takes that for a broken connection
        watch._ear.connection._sock.close()  # type: ignore[union-attr]
        assert watch.wait(5.0) == {"queue:default"}
        assert watch.wait(5.0) == {"queue:default"}
        assert watch.wait(0.1) == set()
        store.enqueue_many([new()])
        assert watch.wait(5.0) == {"queue:default"}
        watch.close()


@pytest.mark.parametrize("fleet", ["one", "cluster"])
def test_a_connection_that_comes_back_after_the_end_is_closed(start_redis: StartRedis, servers: Servers, fleet: str) -> None:
    nodes = [start_redis()] if fleet == "one" else servers.cluster.nodes
    before = clients(*nodes)
    store = redis.open(f"{nodes[0].url if fleet == 'one' else servers.cluster.url}?prefix=back")
    store.counts()
    # Given a call that is under way when the store is closed
    for node in nodes:
        node.command("CLIENT", "PAUSE", 500, "WRITE")
    answers: list[Any] = []
    calling = threading.Thread(target=lambda: answers.append(store.enqueue_many([new(id="late")])))
    calling.start()
    time.sleep(0.2)
    store.close()
    # Then it ends well, and leaves nothing, also before garbage is collected
    gc.disable()
    try:
        calling.join()
        assert [answer.outcome for answer in answers[0]] == ["created"]
        until(lambda: clients(*nodes) <= before, "its connection is closed")
    finally:
        gc.enable()


# servers that take no writes


WRITES: Final = {
    "enqueue": ("enqueue", "", "", 1, "default", 4, "t", "", 0, 1, "new", "{}"),
    "lease": ("lease", "", "node", 10**6, 1, "default", 5),
    "permit": ("permit", "", "default", "token", 1, 10**6),
    "extend": ("extend", "", 10**6, "ran", 1, 0),
    "move": ("move", "", "cancel", "", "", "", "waits"),
    "drop": ("drop", "", "waits"),
    "settle": ("settle", "", "ran", 1, "ack", 0),
    "tick": ("tick", "", 10),
    "put": ("put", "", "queue", "q", "", "{}"),
    "discard": ("discard", "", "queue", "there", ""),
    "copy": ("copy", "", 1, "q", "{}"),
    "renew": ("renew", "", 1, "q", "{}"),
    "claim": ("claim", "", "other", "id", 10**6, 10**6, "", ""),
    "judged": ("judged", "", "key", "id 1", ""),
    "permitted": ("permitted", "", "default", "token", 1, 10**6, "id"),
    "unpermit": ("unpermit", "", "default", "id"),
    "await": ("await", "", 10, "ran"),
}


def few_replicas(server: Redis) -> str:
    server.command("CONFIG", "SET", "min-replicas-to-write", 1)
    return "has fewer replicas in step than min-replicas-to-write, and takes no writes; "


def no_disk(server: Redis) -> str:
    (server.folder / "dump.rdb").unlink(missing_ok=True)
    (server.folder / "dump.rdb").mkdir()  # which not even root can write a file over
    server.command("BGSAVE")
    until(lambda: server.facts("INFO", "persistence")["rdb_last_bgsave_status"] == "err", "the snapshot fails")
    return "cannot write its files, and takes no writes until it can; look at its log, and at the room on its disk."


def replica(server: Redis) -> str:
    server.command("REPLICAOF", "127.0.0.1", 1)
    return "is a replica, and takes no writes; a failover may be under way, so try again."


@pytest.mark.parametrize("ill", [few_replicas, no_disk, replica], ids=lambda ill: ill.__name__)
def test_a_server_that_takes_no_writes_says_so_and_has_written_nothing(
    start_redis: StartRedis, ill: Callable[[Redis], str]
) -> None:
    # Given a store with a bit of everything, on a server that falls ill
    server = start_redis(save="3600 1000000")
    with closing(redis.open(server.url)) as store:
        store.enqueue_many([new(id="ran"), new(id="waits"), new(id="later", delay=0.01)])
        store.lease({"default": 1}, "node", LEASE_S)
        store._run(ROOT, "claim", "key", "id", 10**6, 10**6, "", "")
        store._run(ROOT, "put", "queue", "there", "", b"{}")
        why = ill(server)
        before = contents(server)
        # When anything is called that writes, then it is refused by name, and no part of it was done
        for name, (verb, _, *words) in WRITES.items():
            sentence = refused(lambda verb=verb, words=words: store._server.run(ROOT, verb, "", *words))
            assert sentence.startswith(f"Redis at {server.url} {why}"), name
            assert contents(server) == before, name
        assert refused(lambda: store.enqueue_many([new()])).startswith(f"Redis at {server.url} {why}")
    server.kill()  # it does not end in peace when it cannot write


def contents(server: Redis) -> dict[str, Any]:
    keys = server.command("KEYS", "*")
    dumped = {key: server._connection(0) for key in sorted(keys)}
    found: dict[str, Any] = {}
    for key, line in dumped.items():
        try:
            line.encoder.decode_responses = False
            line.send_command("DUMP", key)
            found[key] = line.read_response(disable_decoding=True)
        finally:
            line.disconnect()
    return found


def test_a_master_that_was_cut_off_is_left(tmp_path: Path) -> None:
    # Given a master that takes no writes without a replica, and that cannot be told to be one
    with Sentinels(tmp_path / "fleet") as fleet, closing(redis.open(fleet.url)) as store:
        old = fleet.master()
        (other,) = (server for server in fleet.servers if server is not old)
        assert store.enqueue_many([new(id="before")])[0].outcome == "created"
        old.command("CONFIG", "SET", "min-replicas-to-write", 1)
        old.command("ACL", "SETUSER", "default", "-replicaof", "-slaveof")
        # When it stood still for so long that the Sentinels chose another
        old.suspend()
        until(lambda: fleet._promoted(other), "the replica is the master")
        old.resume()
        until(lambda: old.facts("INFO", "replication").get("connected_slaves") == "0", "it has no replica")
        # Then it is heard of once at most, and the new one is asked from then on
        with suppress(BackendDown):
            store.enqueue_many([new(id="at the old one")])
        answers = [store.enqueue_many([new()])[0].outcome for _ in range(5)]
        assert answers == ["created"] * 5
        assert store.counts()[("default", State.PENDING)] >= 6


def test_a_policy_that_is_set_later_is_noticed(start_redis: StartRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_server, "FRESH_S", 0.3)
    server = start_redis()
    with closing(redis.open(server.url)) as store:
        store.enqueue_many([new(id="j")])
        # Given that somebody lets Redis delete keys, while no connection breaks
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        time.sleep(0.4)
        # Then calls say so until it is set right
        for _ in range(2):
            assert "may delete jobs when its memory is full" in refused(lambda: store.enqueue_many([new(id="k")]))
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        assert store.enqueue_many([new(id="k")])[0].outcome == "created"


def test_how_often_a_server_is_asked_about_itself(start_redis: StartRedis) -> None:
    server = start_redis()
    with closing(redis.open(f"{server.url}?shards={SHARDS}")) as store:
        for _ in range(20):
            store.counts()
        assert "calls=1," in server.facts("INFO", "commandstats")["cmdstat_info"]


# batches of which a part was done


def big(id: str) -> NewJob:
    return new(id=id, payload=Raw(b'"%s"' % (b"x" * 500_000)))


def test_a_redis_that_fills_up_amid_a_batch(start_redis: StartRedis) -> None:
    # Given a server with room for some pieces of a batch
    server = start_redis()
    with closing(redis.open(server.url)) as store:
        store.counts()
        server.command("CONFIG", "SET", "maxmemory", int(server.facts("INFO", "memory")["used_memory"]) + 12_000_000)
        # When the batch is refused, then it is said that some of it may have been accepted
        said = refused(lambda: store.enqueue_many([big(f"j{n}") for n in range(60)]))
        assert said == (
            f"Redis at {server.url} is full; raise its maxmemory, or wait until finished jobs are forgotten. Other jobs of the "
            "batch may have been accepted: send it again with the same ids."
        )
        assert 0 < store.counts()[("default", State.PENDING)] < 60
        # And of one that is refused as a whole, that is not said
        server.command("CONFIG", "SET", "maxmemory", int(server.facts("INFO", "memory")["used_memory"]) - 1_000_000)
        assert refused(lambda: store.enqueue_many([new(), new()])).endswith("wait until finished jobs are forgotten.")


def test_what_redis_adds_to_an_error_is_left_out(start_redis: StartRedis) -> None:
    server = start_redis()
    with closing(redis.open(server.url)) as store:
        store.enqueue_many([new(id="j")])
        server.command("SET", "gotask:{0}:counts", "no hash")
        with pytest.raises(BackendDown) as caught:
            store.enqueue_many([new(id="k")])
    assert str(caught.value) == (
        f"Redis at {server.url} refused (WRONGTYPE Operation against a key holding the wrong kind of value); the outcome is "
        "unknown, so try again with the same id."
    )


# a Cluster of which a master is dead


class Holed:
    """A Cluster that goes on without one of its masters, a store of six shards in it, and ids by where they lie."""

    def __init__(self, fleet: Cluster) -> None:
        self.fleet = fleet
        self.url = f"{fleet.url}?shards={SHARDS}&timeout=1"
        self.store = redis.open(self.url)
        self.store.counts()
        roots = self.store._shards.roots
        self.victim = next(node for node in fleet.nodes if node is not fleet.holder(ROOT))
        self.dead = [root for root in roots if fleet.holder(root) is self.victim]
        self.live = [root for root in roots if root not in self.dead]
        assert (len(self.dead), len(self.live)) == (2, 4)
        self._names = count()

    def ids(self, roots: list[str]) -> list[str]:
        """An id in each of the shards."""
        found: dict[str, str] = {}
        while len(found) < len(roots):
            id = f"j{next(self._names)}"
            if (root := self.store._shards.of(id)) in roots:
                found.setdefault(root, id)
        return list(found.values())


@pytest.fixture
def holed(tmp_path: Path) -> Iterator[Holed]:
    with ExitStack() as stack:
        made = Holed(stack.enter_context(Cluster(tmp_path / "cluster", cluster_require_full_coverage=False)))
        stack.enter_context(closing(made.store))
        yield made


def test_a_dead_master_of_a_cluster_stops_its_own_shards_only(holed: Holed) -> None:
    store = holed.store
    # Given jobs in all shards that run, that wait, and that sleep, and a listener
    runs = [*holed.ids(holed.dead), *holed.ids(holed.live)]
    store.enqueue_many([new(id=id) for id in runs])
    jobs = {job.id: job for job in store.lease({"default": 99}, "node", LEASE_S)}
    assert set(jobs) == set(runs)
    sleepers = [*holed.ids(holed.dead), *holed.ids(holed.live)]
    store.enqueue_many([new(id=id, delay=0.1) for id in sleepers])
    # When a master dies
    holed.victim.kill()
    for opened in (store, redis.open(holed.url)):
        # Then what is due in other shards is done, whichever comes first
        time.sleep(0.2)
        for _ in range(SHARDS):
            with pytest.raises(BackendDown):
                opened.tick()
        # And leases of those are extended
        with pytest.raises(BackendDown, match="cannot be reached"):
            opened.extend_many([Beat(job.id, job.lease) for job in jobs.values()], LEASE_S * 10)
        # And one can listen, and enqueue there
        with closing(opened.watch(["queue:default"])) as watch:
            (id,) = holed.ids(holed.live[:1])
            assert opened.enqueue_many([new(id=id)])[0].outcome == "created"
            until(lambda watch=watch: watch.wait(1.0) == {"queue:default"}, "the bell rings")
            sleepers.append(id)
        if opened is not store:
            opened.close()
    # And a batch for all says that some of it may be there
    batch = [*holed.ids(holed.dead), *holed.ids(holed.live)]
    with pytest.raises(BackendDown, match="may have been accepted: send it again with the same ids"):
        store.enqueue_many([new(id=id) for id in batch])
    # And its jobs in the other shards are leased, and end
    there = {id for id in (*sleepers, *batch) if store._shards.of(id) in holed.live}
    found = store.lease({"default": 99}, "node", LEASE_S)
    assert {job.id for job in found} == there
    assert store.lease({"default": 99}, "node", LEASE_S) == []
    with pytest.raises(BackendDown):
        store.settle_many([Settlement(job.id, job.lease, Event.ACK) for job in jobs.values()])
    ended = [id for id in runs if store._shards.of(id) in holed.live]
    assert {job.status for job in store.get_many(ended) if job} == {State.SUCCESS}
    # When it is back, then so is everything
    holed.victim.start()
    until(lambda: quiet(store), "the store is whole")
    answers = store.extend_many([Beat(job.id, job.lease) for job in jobs.values()], LEASE_S)
    assert set(answers) == {Held.LOST}  # they had ended, or died with their master, which keeps nothing


def quiet(store: redis.Redis) -> bool:
    with suppress(BackendDown):
        store.tick()
        return True
    return False


def test_a_lease_whose_answer_was_lost_is_told_of_though_others_gave_jobs(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(redis.open(f"{servers.cluster.url}?prefix=unheard&shards={SHARDS}")) as store:
        store.enqueue_many([new() for _ in range(30)])
        lost, at = store._shards.roots[3], store._lease_at

        # Given a shard whose answer does not arrive
        def unheard(root: str, *words: Any, **more: Any) -> Any:
            if root == lost:
                raise BackendDown("It did not answer.")
            return at(root, *words, **more)

        with monkeypatch.context() as patch:
            patch.setattr(store, "_lease_at", unheard)
            # Then the jobs of the others are had
            assert store.lease({"default": 99}, "node", LEASE_S)
        # And it is said in place of the next lease
        with pytest.raises(BackendDown, match="did not answer"):
            store.lease({"default": 99}, "node", LEASE_S)
        assert store.lease({"default": 99}, "node", LEASE_S)
        # And at once, if there are no jobs
        monkeypatch.setattr(store, "_lease_at", unheard)
        with pytest.raises(BackendDown, match="did not answer"):
            store.lease({"default": 99}, "node", LEASE_S)
