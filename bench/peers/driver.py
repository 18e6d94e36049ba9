"""GoTask beside other queues on one Redis or PostgreSQL server, in one run: `python -m bench.peers.driver`, or `make peers`."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from subprocess import SubprocessError
from typing import Any

from bench.peers import catalog, catalog_postgres, table
from bench.peers.catalog import Peer
from bench.peers.environment import HOME, Environment, NotThere, prepare
from bench.peers.phases import STEADY_RATE, Bench, Figures
from bench.peers.servers import STARTS, Server

DRAIN_S = 5.0  #: seconds for which a drain is sized, at scale 1
PEERS = {"redis": catalog.PEERS, "postgres": catalog_postgres.PEERS}
RESULTS = {"redis": Path("build/peers.json"), "postgres": Path("build/peers-postgres.json")}
#: also named, where a peer has them
SHOWN = (
    "redis",
    "coredis",
    "ioredis",
    "kombu",
    "taskiq-redis",
    "hiredis",
    "uvloop",
    "psycopg",
    "psycopg2-binary",
    "asyncpg",
    "pg",
)
NOTES = (
    "Each figure is a median; rounds: {rounds}. Every job carries the same 88 characters (100 bytes as JSON) and does one",
    "thing: append a line of 42 bytes to a file, which is how its run is seen and timed, the same for all.",
    "drain: jobs queued before the worker starts; the first twentieth, while its processes come up, does not count.",
    "steady: from just before the enqueue call to the start of the job's body, at {rate:g} jobs/s. pickup: the same, one job",
    "at a time on an idle worker. memory: PSS of the worker's processes after that. in batches: by the peer's own bulk call,",
    "{otherwise}",
)
OTHERWISE = {
    "redis": "or, for arq, SAQ and Taskiq, which have none, 50 enqueue calls at once; – where there is neither.",
    "postgres": "1000 jobs each; – where there is none.",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers.driver", description=__doc__)
    parser.add_argument("--store", choices=PEERS, default="redis", help="the server that all of them use (redis)")
    parser.add_argument("--only", metavar="NAMES", default="", help="measure these peers alone, such as celery,rq")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the medians are shown (3)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual length of a drain (1)")
    args = parser.parse_args(argv)
    only = [name for name in args.only.split(",") if name]
    names = [peer.name for peer in PEERS[args.store]]
    if unknown := set(only) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    peers = [peer for peer in PEERS[args.store] if not only or peer.name in only]
    with folders() as (disk, memory), STARTS[args.store](disk) as server:
        run = measured(peers, server, memory, args.rounds, DRAIN_S * args.scale)
    result = RESULTS[args.store]
    result.parent.mkdir(exist_ok=True)
    result.write_text(json.dumps(run, indent=1) + "\n")
    table.show(run)
    return 0


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """One on disk for the server, one in memory for marks and logs."""
    shm = Path("/dev/shm")
    made = [Path(tempfile.mkdtemp(prefix="peers-", dir=dir)) for dir in (None, shm if shm.is_dir() else None)]
    try:
        yield made[0], made[1]
    finally:
        for each in made:
            shutil.rmtree(each, ignore_errors=True)


def measured(peers: list[Peer], server: Server, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """The whole run. Rounds go round all peers, so that what changes on the machine meanwhile changes for all."""
    rows: dict[str, dict[str, Any]] = {peer.name: row(peer) for peer in peers}
    benches = {}
    for peer in peers:
        (HOME / f"{peer.name}.log").unlink(missing_ok=True)  # of a run before
        with noted(rows[peer.name], folder):
            say(f"{peer.name}: getting ready")
            environment = prepare(peer)
            rows[peer.name] |= named(peer, environment)
            bench = benches[peer.name] = Bench(peer, environment, server, folder)
            rows[peer.name]["jobs"] = bench.jobs_for(seconds)
    for number in range(rounds):
        for peer in peers:
            mine = rows[peer.name]
            if mine["error"]:
                continue
            with noted(mine, folder):
                mine["rounds"].append(benches[peer.name].round(mine["jobs"]))
                say(f"round {number + 1}, {peer.name}: {mine['rounds'][-1]['drain']:,.0f} jobs/s")
    for mine in rows.values():
        mine["figures"] = medians(mine["rounds"]) if mine["rounds"] and not mine["error"] else None
    title = f"No-op jobs on {server.title}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    notes = [note.format(rounds=rounds, rate=STEADY_RATE, otherwise=OTHERWISE[server.kind]) for note in NOTES]
    return {"title": title, "notes": notes, "peers": list(rows.values())}


def row(peer: Peer) -> dict[str, Any]:
    told = {"name": peer.name, "settings": peer.settings, "killed": peer.killed, "command": peer.worker}
    return {**told, "version": "", "versions": "", "jobs": 0, "rounds": [], "error": ""}


def named(peer: Peer, environment: Environment) -> dict[str, str]:
    beside = [f"{name} {environment.versions[name]}" for name in SHOWN if name in environment.versions and name != peer.package]
    version = environment.versions.get(peer.package, "")
    if peer.python > sys.version_info[:2]:
        beside.append(f"Python {environment.versions['python']}")
    return {"version": version, "versions": ", ".join([f"{peer.package} {version}", *beside])}


@contextmanager
def noted(mine: dict[str, Any], folder: Path) -> Iterator[None]:
    """A peer that fails becomes a row that says why; its log is kept."""
    try:
        yield
    except (NotThere, AssertionError, OSError, ValueError, SubprocessError) as error:
        log = folder / f"{mine['name']}.log"
        mine["error"] = str(error)
        if log.exists():
            kept = HOME / log.name
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, kept)
            said = log.read_text(errors="replace").split("\n")
            telling = [line.strip() for line in said if "Error" in line] or [line.strip() for line in said if line.strip()]
            mine["error"] += f" Its log, {kept}, says: {telling[-1]}" if telling else ""
        say(f"{mine['name']}: {mine['error']}")


def medians(rounds: list[Figures]) -> Figures:
    found: Figures = {}
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        found[name] = None if None in values else median(value for value in values if value is not None)
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
