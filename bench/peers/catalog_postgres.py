"""The peers on PostgreSQL, under the rules of catalog.py, each with the durability that it comes with."""

from typing import Final

from bench.peers.catalog import Peer

PEERS: Final = (
    Peer(
        name="gotask",
        package="gotask",
        requires=(),
        worker="python -m gotask.cli.worker -A gotask_app:app -health-port=0 -log-level=warning",
        app="gotask_app",
        environ={"GOTASK_STORAGE": "{postgres}?schema=peers"},
        settings="as it comes: a worker process per core; every job's record and result are kept",
        killed="runs again",
    ),
    Peer(
        name="procrastinate",
        package="procrastinate",
        requires=("procrastinate==3.10.0", "psycopg[binary]"),
        setup=("procrastinate --app=procrastinate_app.app --log-level=warning schema --apply",),
        worker="procrastinate --app=procrastinate_app.app --log-level=warning worker --concurrency=50 --delete-jobs=successful",
        app="procrastinate_app",
        copies=2,
        settings="2 workers of 50 coroutines, psycopg in C, a pool of 20 connections each; jobs are deleted when they succeed",
        killed="stays as it is until somebody retries stalled jobs",
    ),
    Peer(
        name="pgqueuer",
        package="pgqueuer",
        requires=("pgqueuer[asyncpg]==1.6.0",),
        setup=("pgq install", "pgq autovac"),
        worker="python pgqueuer_app.py",
        app="pgqueuer_app",
        environ={"PGQUEUER_DSN": "{postgres}"},
        copies=2,
        settings="2 workers on asyncpg and uvloop, batches of 500, its advice for autovacuum; durable, its default",
        killed="runs again",
    ),
    Peer(
        name="chancy",
        package="chancy",
        requires=("chancy[cli]==0.26.0", "psycopg[binary]"),
        setup=("python chancy_app.py",),
        worker="chancy --app chancy_app.chancy worker start",
        app="chancy_app",
        copies=2,
        settings="2 workers of 2000 coroutines, eager polling, psycopg in C, no workflows or metrics, quiet;"
        " it writes what has ended once a second",
        killed="runs again, and so may those of its last second",
    ),
    Peer(
        name="oban",
        package="oban",
        requires=("oban==0.7.0",),
        python=(3, 12),
        setup=("oban install --dsn {postgres}",),
        worker="oban start --dsn {postgres} --queues default:500 --log-level WARNING",
        app="oban_app",
        copies=2,
        settings="2 nodes of 500 coroutines on uvloop, the free version; its own Python, since it needs 3.12",
        killed="runs again",
    ),
    Peer(
        name="huey",
        package="huey",
        home="huey-postgres",
        requires=("huey==3.5.4", "peewee", "psycopg2-binary"),
        worker="python -m huey.bin.huey_consumer huey_sql_app.huey -k process -w 4 -n -q -d 0.005 -m 0.02",
        app="huey_sql_app",
        settings="SqlHuey with peewee and psycopg2, 4 processes that poll each 5 to 20 ms, no results, no periodic tasks",
        killed="is lost (a pop removes it)",
    ),
    Peer(
        name="bullmq",
        package="bullmq",
        home="bullmq-postgres",
        requires=("bullmq@6.7.0", "pg@8.23.1"),
        setup=("node bullmq_store.cjs",),
        worker="node bullmq_worker.cjs",
        app="bullmq_producer.cjs",
        settings="its PostgreSQL backend; 2 Node processes, each with a worker of concurrency 32 and a pool of 10 connections;"
        " completed jobs are removed at once",
        killed="runs again",
    ),
)
