"""What is measured of one peer in one round."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, run

import numpy as np

from bench.peers.catalog import Peer
from bench.peers.environment import APPS, Environment, NotThere
from bench.peers.processes import Producer, memory, started, wait_for
from bench.peers.servers import Server

SETUP_S = 60.0  #: seconds in which a peer must have made its tables
LINE = 42  #: bytes of a mark, as apps/marks.py writes them
STEADY_RATE = 200.0  #: jobs per second, which every peer can sustain on two cores
STEADY_S = 3.0
PICKUPS = 200
PICKUP_S = 4.0
WARM_UP = 0.05  #: part of a drain that is left out, in which the worker's processes come up one after the other
PROBE_LEAST_S = 0.5  #: seconds a drain must have taken to tell the rate from
PROBE = 1000  #: jobs of the first drain
MOST = 400_000  #: jobs of a drain

Figures = dict[str, float | None]


class Bench:
    """One peer, ready to be measured on one server. The marks lie in memory, so that they do not compete for the disk."""

    def __init__(self, peer: Peer, environment: Environment, server: Server, folder: Path) -> None:
        self._peer = peer
        self._environment = environment
        self._server = server
        self._names = {server.kind: server.url}
        self._marks = folder / f"{peer.name}.marks"
        self.log = folder / f"{peer.name}.log"
        own = {name: value.format(**self._names) for name, value in peer.environ.items()}
        shared = {"PEERS_MARKS": str(self._marks), "GOTASK_STATE_DIR": str(folder)}
        shared[f"PEERS_{server.kind.upper()}"] = server.url
        self._environ = {**os.environ, **environment.environ, **shared, **own}

    def jobs_for(self, seconds: float) -> int:
        """How many jobs a drain of that length needs."""
        count = PROBE
        while True:
            with self._emptied() as producer:
                producer.ask("fill", count=count)
                with self._workers() as workers:
                    rate, took = self._drained(workers, count, 60)
            if took >= PROBE_LEAST_S or count >= MOST:
                return max(200, min(MOST, round(rate * seconds)))
            count = min(MOST, count * 10)

    def round(self, count: int) -> Figures:
        """Enqueue, drain, steady state, pickup, memory: in that order, on one worker that is started after the first."""
        with self._emptied() as producer:
            filled = producer.ask("fill", count=count)
            with self._workers() as workers:
                rate, _ = self._drained(workers, count, 120)
                steady = self._waits(producer, "steady", rate=STEADY_RATE, seconds=STEADY_S)
                pickup = self._waits(producer, "pickup", count=PICKUPS, seconds=PICKUP_S)
                idle = memory([each.pid for each in workers])
        percentiles = {
            f"{name}_p{part}_ms": float(np.percentile(waits, part)) / 1e6
            for name, waits in (("steady", steady), ("pickup", pickup))
            for part in (50, 99)
        }
        return {"enqueue": filled["one"], "enqueue_many": filled["many"], "drain": rate, **percentiles, "memory_mb": idle}

    @contextmanager
    def _emptied(self) -> Iterator[Producer]:
        self._server.empty()
        self._marks.write_bytes(b"")
        for line in self._peer.setup:
            self._set_up(self._environment.command(line.format(**self._names)))
        runner = "node" if self._peer.node else "python -m producer"
        command = self._environment.command(f"{runner} {self._peer.app}")
        with started(command, APPS, self._environ, self.log, stdin=PIPE, stdout=PIPE) as process:
            yield Producer(process)

    def _set_up(self, command: list[str]) -> None:
        with self.log.open("ab") as log:
            done = run(command, cwd=APPS, env=self._environ, stdin=DEVNULL, stdout=log, stderr=log, timeout=SETUP_S)
        if done.returncode:
            raise NotThere(f"Its tables could not be made: {' '.join(command[1:])} failed.")

    @contextmanager
    def _workers(self) -> Iterator[list["Popen[str]"]]:
        command = self._environment.command(self._peer.worker.format(**self._names))
        with ExitStack() as stack:
            yield [stack.enter_context(started(command, APPS, self._environ, self.log)) for _ in range(self._peer.copies)]

    def _ran(self) -> int:
        return self._marks.stat().st_size // LINE

    def _read(self, start: int) -> "np.ndarray":
        """The marks from `start` on, as rows of what was sent and when it ran."""
        rows = self._marks.read_bytes()[start * LINE :].split()
        return np.array(rows).astype(np.int64).reshape(-1, 2)

    def _drained(self, workers: list["Popen[str]"], count: int, seconds: float) -> tuple[float, float]:
        """Jobs per second, and the seconds in which they were counted."""

        def over() -> bool:
            if any(each.poll() is not None for each in workers):
                raise NotThere("Its worker ended by itself.")
            return self._ran() >= count

        wait_for(f"Its worker did not run {count:,} queued jobs", over, seconds)
        numbers, at = self._read(0)[:count].T
        if len(set(numbers)) != count:
            raise NotThere(f"It ran {len(set(numbers)):,} of {count:,} jobs, some of them twice.")
        at.sort()
        first = int(count * WARM_UP)
        took = float(at[-1] - at[first]) / 1e9
        return (count - 1 - first) / took, took

    def _waits(self, producer: Producer, do: str, **asked: float) -> "np.ndarray":
        """Nanoseconds from just before each enqueue call to the start of the job's body."""
        before = self._ran()
        sent = producer.ask(do, **asked)["sent"]
        wait_for(f"Its worker did not run all jobs of {do}", lambda: self._ran() >= before + sent, 30)
        asked_at, ran_at = self._read(before).T
        waits: np.ndarray = ran_at - asked_at
        return waits
