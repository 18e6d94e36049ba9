"""`gotask doctor` and `gotask health`: is this machine, and is that store, fit to work?"""

import argparse
import importlib.util
import os
import platform
import shutil
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

from gotask import __version__, backends, log
from gotask.backends.sqlite.home import sqlite_home
from gotask.cli import exits, flags, output, store, up
from gotask.cli.doctor_postgres import postgres
from gotask.cli.finding import Finding
from gotask.errors import GotaskError
from gotask.settings import ServerSettings, WorkerSettings, cpu_count

SQLITE_LEAST: Final = (3, 51, 3)  #: older libraries can corrupt a database when its WAL is reset
SHM_LEAST: Final = 64 * 2**20  #: bytes; a node's segment and a memory store want about this
DISK_LEAST: Final = 64 * 2**20  #: bytes; the log of an embedded store alone may take a third of it
TRIP_MOST_S: Final = 0.05  #: seconds to a Redis and back, above which it is too far away
CLOCK_MOST_S: Final = 1.0  #: seconds that its clock may differ before people wonder why a job starts early or late
MEMORY_SHARE: Final = 0.8  #: part of maxmemory in use, above which to warn
HEALTH_S: Final = 5.0  #: seconds a health check may take


def add(sub: Any) -> None:
    parser = flags.command(
        sub,
        "doctor",
        doctor,
        "Check this machine and the storage.",
        "gotask doctor -storage=memory",
        ServerSettings,
        WorkerSettings,
    )
    flags.reading(parser)
    parser = flags.command(
        sub,
        "health",
        health,
        "Ask whether the server (or, with --worker, the node) is ready; for probes.",
        "gotask health\ngotask health --worker",
        ServerSettings,
        WorkerSettings,
    )
    parser.add_argument("--worker", action="store_true", help="ask the node instead of the server")
    flags.reading(parser)


def doctor(args: argparse.Namespace) -> int:
    server, worker = flags.settings(ServerSettings, args), flags.settings(WorkerSettings, args)
    checks: list[Callable[[], Iterator[Finding]]] = [
        program,
        lambda: storage(server.url),
        lambda: disk(server.url),
        lambda: redis(server.url),
        lambda: postgres(server.url),
        sqlite,
        extension,
        shared_memory,
        lambda: ports(server, worker),
    ]
    found = [finding for check in checks for finding in check()]
    if args.json:
        output.as_json([finding._asdict() for finding in found])
    else:
        output.table(["check", "verdict", "what was found"], found)
    return exits.FAILED if any(finding.verdict == "bad" for finding in found) else exits.OK


def program() -> Iterator[Finding]:
    yield Finding("version", "ok", f"GoTask {__version__}, Python {platform.python_version()}, {cpu_count()} CPUs usable")
    linux = platform.system() == "Linux"
    yield Finding("system", "ok" if linux else "warn", platform.platform() + ("" if linux else ": a worker needs Linux"))


def storage(url: str) -> Iterator[Finding]:
    shown = log.scrub(url)
    try:
        yield Finding("storage", "ok", f"{shown}: {store.tried(url)}")
    except GotaskError as e:
        yield Finding("storage", "bad", f"{shown}: {log.scrub(str(e))}")


def disk(url: str) -> Iterator[Finding]:
    """Room where an embedded store keeps its file; that of `memory` is /dev/shm, which is looked at anyway."""
    if url.partition(":")[0] != "sqlite":
        return
    try:
        folder = os.path.dirname(sqlite_home(url).path)
        found = os.statvfs(folder)
    except (GotaskError, OSError):
        return  # told as the storage's
    room = found.f_bavail * found.f_frsize
    if found.f_flag & os.ST_RDONLY:
        yield Finding("disk", "bad", f"{folder} is read-only: name a storage on a disk that can be written")
        return
    enough = room >= DISK_LEAST
    least = "" if enough else f": less than {DISK_LEAST >> 20} MiB, so free some space before jobs are refused"
    yield Finding("disk", "ok" if enough else "warn", f"{room >> 20} MiB free in {folder}{least}")


def redis(url: str) -> Iterator[Finding]:
    """What the servers of a Redis storage say of themselves: of several, each line tells of the one that is worst off."""
    if not backends.is_kept_in(url, "redis"):
        return
    try:
        from gotask.backends.redis import facts
        from gotask.backends.redis.sentences import POLICY

        found = facts.look(url)
    except (GotaskError, ModuleNotFoundError):
        return  # told as the storage's
    old = any(one.old for one in found)
    servers = f" on {len(found)} servers" if len(found) > 1 else ""
    versions = ", ".join(sorted({one.version for one in found}))
    yield Finding("redis", "bad" if old else "ok", f"{versions}{servers}{': older than GoTask needs' if old else ''}")
    evicts = sorted({one.policy for one in found} - {POLICY})
    advice = f"{', '.join(evicts)} may delete jobs: redis-cli config set maxmemory-policy {POLICY}"
    yield Finding("policy", "bad" if evicts else "ok", advice if evicts else POLICY)
    yield persistence(all(one.log for one in found), all(one.log_works for one in found), min(one.replicas for one in found))
    trip = max(one.trip_s for one in found)
    far = ": far for a storage, since every batch waits so long" if trip > TRIP_MOST_S else ""
    yield Finding("round trip", "warn" if far else "ok", f"{trip * 1000:.2g} ms{far}")
    ahead = max((one.ahead_s for one in found), key=abs)
    off = ": what is due is judged by the clock of Redis" if abs(ahead) > CLOCK_MOST_S else ""
    where = "ahead of" if ahead > 0 else "behind"
    yield Finding("clock", "warn" if off else "ok", f"{abs(ahead):.3f} s {where} this machine{off}")
    yield memory(*max(((one.used, one.most) for one in found), key=lambda one: (one[0] / one[1] if one[1] else 0.0, one[0])))


def persistence(log: bool, works: bool, replicas: int) -> Finding:
    if not works:
        return Finding("persistence", "bad", "Redis could not write its files the last time: look at its log and its disk")
    if not log:
        return Finding("persistence", "warn", "no append-only file, so a crash of Redis loses jobs: set 'appendonly yes'")
    return Finding("persistence", "ok", f"append-only file, {replicas} replica{'' if replicas == 1 else 's'}")


def memory(used: int, most: int) -> Finding:
    shown = f"{used / 2**20:.1f} MiB used"
    if not most:
        return Finding(
            "memory", "ok", f"{shown}, and no maxmemory: with one, a full Redis refuses jobs before the machine is full"
        )
    full = used > MEMORY_SHARE * most
    advice = ": raise maxmemory before jobs are refused" if full else ""
    return Finding("memory", "warn" if full else "ok", f"{shown} of {most / 2**20:.1f} MiB{advice}")


def sqlite() -> Iterator[Finding]:
    import apsw

    version = apsw.sqlite_lib_version()
    current = tuple(int(part) for part in version.split(".")) >= SQLITE_LEAST
    least = ".".join(map(str, SQLITE_LEAST))
    yield Finding(
        "sqlite", "ok" if current else "bad", version if current else f"{version} can corrupt data; {least} or later is needed"
    )


def extension() -> Iterator[Finding]:
    there = importlib.util.find_spec("gotask._core.ring") is not None
    yield Finding(
        "extension", "ok" if there else "bad", "built" if there else "not built, so no worker runs here: run `make build`"
    )


def shared_memory() -> Iterator[Finding]:
    try:
        room = shutil.disk_usage("/dev/shm").free
    except OSError as e:
        yield Finding("/dev/shm", "warn", f"{e.strerror}: the memory storage has no home")
        return
    enough = room >= SHM_LEAST and os.access("/dev/shm", os.W_OK)
    least = "" if enough else f": memory storage wants {SHM_LEAST >> 20} MiB (in a container: --shm-size)"
    yield Finding("/dev/shm", "ok" if enough else "warn", f"{room >> 20} MiB free{least}")


def ports(server: ServerSettings, worker: WorkerSettings) -> Iterator[Finding]:
    wanted = (
        ("http-port", server.http_addr, server.http_port),
        ("metrics-port", server.http_addr, server.metrics_port),
        ("health-port", worker.health_addr, worker.health_port),
    )
    for name, address, port in wanted:
        if not port:
            continue
        try:
            with socket.create_connection((address, port), timeout=0.5):
                yield Finding(name, "warn", f"{port} answers already: GoTask is up, or another program has it")
        except OSError:
            yield Finding(name, "ok", f"{port} is free")


def health(args: argparse.Namespace) -> int:
    import http.client  # a fifth of this program's start, and only this command needs it

    if args.worker:
        worker = flags.settings(WorkerSettings, args)
        address, port = worker.health_addr, worker.health_port
    else:
        server = flags.settings(ServerSettings, args)
        address, port = server.http_addr, server.http_port
    address = up.local(address)
    connection = http.client.HTTPConnection(address, port, timeout=HEALTH_S)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        body = answer.read(300).decode(errors="replace")
    except (OSError, http.client.HTTPException) as e:
        if args.json:
            output.as_json({"address": address, "port": port, "ready": False, "status": None, "body": str(e)})
            return exits.FAILED
        return exits.failed(f"Nothing answers at {address}:{port} ({e}).", exits.FAILED)
    finally:
        connection.close()
    ready = answer.status < 400
    if args.json:
        output.as_json({"address": address, "port": port, "ready": ready, "status": answer.status, "body": body.strip()})
    else:
        output.say(f"{address}:{port} answers {answer.status}: {body.strip()}")
    return exits.OK if ready else exits.FAILED
