"""The peers on Redis, and what a peer is: what each needs, how its worker is started, and how it is configured.

A peer is an entry here and a file in apps/, which holds its task and its ways to enqueue. Its settings are the fastest that
its own documentation offers for a machine with two cores and jobs that do nothing; `settings` says so below the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Peer:
    name: str
    package: str  #: whose version is shown
    requires: tuple[str, ...]  #: what pip or npm is asked for; nothing if it is this repository's own environment
    #: the command, whose first word is a program of the environment; "{redis}" or "{postgres}" is the server's URL
    worker: str
    app: str  #: of apps/; one that ends in .cjs is its own producer
    settings: str  #: for the notes
    killed: str  #: for the notes: what becomes of a job whose worker is killed
    copies: int = 1  #: of the worker's command, where it has no flag for processes
    home: str = ""  #: environment, where peers share one; its own name otherwise
    environ: Mapping[str, str] = field(default_factory=dict)  #: the server's URL here too
    setup: tuple[str, ...] = ()  #: commands that make its tables in an empty database
    python: tuple[int, int] = (3, 0)  #: the oldest that it runs on

    @property
    def node(self) -> bool:
        return self.app.endswith(".cjs")


PEERS: Final = (
    Peer(
        name="gotask",
        package="gotask",
        requires=(),
        worker="python -m gotask.cli.worker -A gotask_app:app -health-port=0 -log-level=warning",
        app="gotask_app",
        environ={"GOTASK_STORAGE": "{redis}?prefix=peers"},
        settings="as it comes: a worker process per core; every job's record and result are kept",
        killed="runs again",
    ),
    Peer(
        name="celery",
        package="celery",
        requires=("celery[redis]", "hiredis"),
        worker="celery -A celery_app worker -P prefork -c 2 -l WARNING --without-gossip --without-mingle --without-heartbeat",
        app="celery_app",
        settings="2 solo workers (faster here than prefork and threads), prefetch multiplier 128, results ignored;"
        " no gossip, mingle, heartbeat or remote control",
        killed="is lost (early acknowledgement, its default and fastest)",
    ),
    Peer(
        name="dramatiq",
        package="dramatiq",
        requires=("dramatiq[redis]", "hiredis"),
        worker="dramatiq dramatiq_app --processes 2 --threads 8 --skip-logging",
        app="dramatiq_app",
        environ={"dramatiq_queue_prefetch": "1000"},
        settings="2 processes of 8 threads, prefetching 1000, no middleware, no results",
        killed="runs again",
    ),
    Peer(
        name="rq",
        package="rq",
        requires=("rq", "hiredis"),
        worker="rq worker-pool -q -n 2 -w rq.worker.SimpleWorker -u {redis} default",
        app="rq_app",
        settings="worker-pool of 2 SimpleWorkers, which do not fork for each job; result_ttl 0",
        killed="is marked failed",
    ),
    Peer(
        name="huey",
        package="huey",
        requires=("huey", "redis", "hiredis"),
        worker="python -m huey.bin.huey_consumer huey_app.huey -k process -w 4 -n -q",
        app="huey_app",
        settings="4 worker processes, blocking pop, no results, no periodic tasks",
        killed="is lost (a pop removes it)",
    ),
    Peer(
        name="taskiq-list",
        package="taskiq",
        home="taskiq",
        requires=("taskiq", "taskiq-redis", "hiredis", "uvloop", "orjson"),
        worker="taskiq worker --workers 2 --max-async-tasks 100 --no-parse --log-level WARNING taskiq_app:broker",
        app="taskiq_app",
        environ={"TASKIQ_BROKER": "list"},
        settings="ListQueueBroker, 2 workers of 100 coroutines on uvloop, no parsing of arguments, no result backend",
        killed="is lost (a pop removes it)",
    ),
    Peer(
        name="taskiq-stream",
        package="taskiq",
        home="taskiq",
        requires=("taskiq", "taskiq-redis", "hiredis", "uvloop", "orjson"),
        worker="taskiq worker --workers 2 --max-async-tasks 100 --no-parse --log-level WARNING taskiq_app:broker",
        app="taskiq_app",
        environ={"TASKIQ_BROKER": "stream"},
        settings="RedisStreamBroker, reads of 100; the rest as taskiq-list",
        killed="runs again",
    ),
    Peer(
        name="arq",
        package="arq",
        requires=("arq", "hiredis", "uvloop"),
        worker="arq arq_app.WorkerSettings",
        app="arq_app",
        settings="1 worker of 1000 coroutines on uvloop (2 race for the same jobs), polling each 5 ms, no results",
        killed="runs again",
    ),
    Peer(
        name="saq",
        package="saq",
        # its 0.26 imports typing_extensions without asking for it
        requires=("saq[redis,hiredis]", "uvloop", "typing_extensions"),
        worker="saq saq_app.settings --workers 2 --quiet",
        app="saq_app",
        settings="2 workers of 100 coroutines on uvloop; jobs are deleted when they end, and have no time-out",
        killed="runs again",
    ),
    Peer(
        name="streaq",
        package="streaq",
        requires=("streaq", "uvloop"),
        worker="streaq run streaq_app:worker --workers 2",
        app="streaq_app",
        settings="2 workers of 32 coroutines on uvloop, prefetching 64, no results, silent",
        killed="runs again",
    ),
    Peer(
        name="bullmq",
        package="bullmq",
        requires=("bullmq", "ioredis"),
        worker="node bullmq_worker.cjs",
        app="bullmq_producer.cjs",
        settings="2 Node processes, each with a worker of concurrency 50; completed jobs are removed at once",
        killed="runs again",
    ),
)
