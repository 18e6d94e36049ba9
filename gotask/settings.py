"""The settings of each program, each written once: type, bounds, default and help. gotask.config says where values come from.

Flags, GOTASK_* names, gotask.toml keys, the sentences for wrong values and docs/configuration.md are made from these fields.
"""

import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints
from urllib.parse import quote

import msgspec
from msgspec import Meta, Struct

from gotask.errors import InvalidInput
from gotask.log import scrub
from gotask.model import NAME_OR_NOTHING, NAME_PATTERN

PREFIX: Final = "GOTASK_"
EMBEDDED: Final = frozenset({"memory", "sqlite"})  #: schemes of storages that lie in files of this machine
DEFAULT: Final = "default"  #: the origin of a value nobody gave
NO_LIMIT: Final = 0

Port = Annotated[int, Meta(ge=0, le=65_535)]
Names = tuple[Annotated[str, Meta(pattern=NAME_PATTERN)], ...]


class Settings(Struct, kw_only=True):
    """What every program takes: where the jobs are, and how to log."""

    SECTION: ClassVar[str] = "client"

    storage: Annotated[
        str,
        Meta(
            description="Where jobs are kept: memory, sqlite, redis, postgres, or a URL such as redis://host:6379/0 "
            "or sqlite:////var/lib/jobs.db (four slashes)."
        ),
    ] = "sqlite"
    redis_addr: Annotated[
        str,
        Meta(
            description="Redis for storage redis: host:port or user:password@host:port; "
            "for TLS, Sentinels or a Cluster give a URL as the storage.",
            extra={"scheme": "redis"},
        ),
    ] = "localhost:6379"
    postgres_host: Annotated[str, Meta(description="PostgreSQL host, for storage postgres.")] = "localhost"
    postgres_port: Annotated[Port, Meta(description="PostgreSQL port.")] = 5432
    postgres_db: Annotated[str, Meta(description="PostgreSQL database.")] = "taskqueue"
    postgres_user: Annotated[str, Meta(description="PostgreSQL user.")] = "postgres"
    postgres_pass: Annotated[str, Meta(description="PostgreSQL password.", extra={"secret": True})] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least level logged.", extra={"short": "-l"})
    ] = "info"
    log_format: Annotated[Literal["text", "json"], Meta(description="One line of text, or of JSON, per event.")] = "text"

    #: setting -> where its value came from; what is not in it is a default
    origins: dict[str, str] = {}

    @property
    def url(self) -> str:
        """The storage as one URL, composed from the redis-* and postgres-* settings when only those were given."""
        if self.storage == "redis":
            return self.redis_addr if "://" in self.redis_addr else f"redis://{self.redis_addr}"
        if self.storage in ("postgres", "postgresql"):
            user, secret, name = (quote(text, safe="") for text in (self.postgres_user, self.postgres_pass, self.postgres_db))
            host, port = self.postgres_host, self.postgres_port
            host = f"[{host}]" if ":" in host else quote(host, safe="")  # a folder is that of its socket
            return f"postgres://{user}{secret and ':' + secret}@{host}:{port}/{name}"
        return self.storage

    def origin(self, name: str) -> str:
        return self.origins.get(name, DEFAULT)

    def check(self) -> None:
        """Raise InvalidInput for settings that do not go together."""

    def __repr__(self) -> str:  # settings get logged; their secrets must not
        shown = (f"{name}={one.shown(getattr(self, name))}" for name, one in settings_of(type(self)).items())
        return f"{type(self).__name__}({', '.join(shown)})"


class ClientSettings(Settings, kw_only=True):
    """`gotask job`, `gotask queue` and the other commands that ask a store or a server."""

    storage: Annotated[
        str,
        Meta(description="The storage to talk to, as for the server; or the URL of a server, such as http://localhost:8080."),
    ] = "sqlite"
    api_key: Annotated[str, Meta(description="API key, sent when storage is an http URL.", extra={"secret": True})] = ""


class ServerSettings(Settings, kw_only=True):
    """`gotask-server`: the REST API, health and metrics."""

    SECTION: ClassVar[str] = "server"

    http_addr: Annotated[str, Meta(description="Address of the REST API; other than loopback it needs API keys.")] = "127.0.0.1"
    http_port: Annotated[Annotated[int, Meta(ge=1, le=65_535)], Meta(description="Port of the REST API.")] = 8080
    http_workers: Annotated[int, Meta(ge=1, le=256, description="Processes that answer HTTP.")] = 1
    metrics_port: Annotated[Port, Meta(description="Port of the server's Prometheus metrics; 0 turns it off.")] = 9090
    api_keys: Annotated[
        tuple[str, ...],
        Meta(
            description="Keys clients must send, by commas: the key itself, or name:role:sha256 of it.", extra={"secret": True}
        ),
    ] = ()
    allow_anonymous: Annotated[
        bool, Meta(description="Serve an address other than loopback without API keys: anybody who reaches it may do anything.")
    ] = False
    shutdown_timeout: Annotated[float, Meta(ge=0, description="Seconds that requests under way may take after SIGTERM.")] = 25.0

    def check(self) -> None:
        if not (is_loopback(self.http_addr) or self.api_keys or self.allow_anonymous):
            raise InvalidInput(
                f"http-addr is {self.http_addr}, which others can reach: set GOTASK_API_KEYS, or add --allow-anonymous."
            )
        if self.metrics_port == self.http_port:
            raise InvalidInput(f"http-port and metrics-port are both {self.http_port}: change one, or set metrics-port to 0.")


class WorkerSettings(Settings, kw_only=True):
    """`gotask-worker`: one node. `concurrency` and `processes` of 0 mean auto, and are resolved when it is made."""

    SECTION: ClassVar[str] = "worker"

    app: Annotated[
        str, Meta(description="Where the tasks are, as package.module:app; the example tasks if empty.", extra={"short": "-A"})
    ] = ""
    worker_id: Annotated[
        str,
        Meta(pattern=NAME_OR_NOTHING, description="A name for this node, unique among nodes; made up if empty."),
    ] = ""
    queues: Annotated[
        Names,
        Meta(description="Queues served, separated by commas; if empty the tasks' own, and default.", extra={"short": "-Q"}),
    ] = ()
    concurrency: Annotated[
        int,
        Meta(ge=0, le=100_000, description="Jobs run at once, over all processes.", extra={"short": "-c", "auto": "CPUs"}),
    ] = 0
    processes: Annotated[
        int,
        Meta(ge=0, le=4096, description="Worker processes; more slots than processes share them.", extra={"auto": "CPUs"}),
    ] = 0
    max_jobs: Annotated[int, Meta(ge=0, description="Jobs after which a worker process is replaced; 0 is no limit.")] = NO_LIMIT
    max_memory: Annotated[
        int,
        Meta(ge=0, description="Memory (512M, 2G) above which a worker process is replaced; 0: none.", extra={"unit": "bytes"}),
    ] = NO_LIMIT
    preload: Annotated[bool, Meta(description="Import the app before forking: saves memory, and cannot be rolled.")] = False
    reload: Annotated[bool, Meta(description="Restart workers when a source file changes; for development.")] = False
    burst: Annotated[bool, Meta(description="Exit when the queues are empty.")] = False
    health_addr: Annotated[str, Meta(description="Address of the node's health checks and metrics.")] = "127.0.0.1"
    health_port: Annotated[Port, Meta(description="Port of the node's health checks and metrics; 0 turns them off.")] = 9091
    lease: Annotated[
        float, Meta(ge=1, le=86_400, description="Seconds after which an unreachable node's jobs go to another.")
    ] = 30.0
    shutdown_timeout: Annotated[float, Meta(ge=0, description="Seconds that running jobs may take after SIGTERM.")] = 25.0

    def __post_init__(self) -> None:
        self.concurrency = self.concurrency or max(cpu_count(), self.processes)
        self.processes = self.processes or min(cpu_count(), self.concurrency)

    def check(self) -> None:
        if self.processes > self.concurrency:
            raise InvalidInput(
                f"processes is {self.processes} and concurrency {self.concurrency}: each process needs at least one slot."
            )


KINDS: Final[tuple[type[Settings], ...]] = (ServerSettings, WorkerSettings, ClientSettings)


class Setting(NamedTuple):
    """One setting as flags, documents and errors need it."""

    name: str
    type: Any
    help: str
    default: Any
    extra: Mapping[str, Any]

    @property
    def flag(self) -> str:
        return "-" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def plain(self) -> Any:
        """The type without its bounds."""
        return get_args(self.type)[0] if get_origin(self.type) is Annotated else self.type

    @property
    def secret(self) -> bool:
        return bool(self.extra.get("secret"))

    def shown(self, value: Any) -> str:
        """A value for people: lists as they are typed, secrets never."""
        if self.secret and value:
            return "(secret)"
        if self.extra.get("auto") and not value:
            return "auto"
        if "scheme" in self.extra:
            before = f"{self.extra['scheme']}://"
            return scrub(f"{before}{value}").removeprefix(before)
        return (
            ",".join(value)
            if isinstance(value, tuple)
            else str(value).lower()
            if isinstance(value, bool)
            else scrub(f"{value}")
        )

    def expected(self) -> str:
        """What a value must be, as the end of a sentence."""
        if get_origin(self.plain) is Literal:
            return "one of: " + ", ".join(get_args(self.plain))
        if self.plain is bool:
            return "true or false"
        if self.plain in (int, float):
            word = "a size such as 512M" if "unit" in self.extra else "a whole number" if self.plain is int else "seconds"
            low, high = (
                next((b for m in bounds(self.type) if (b := getattr(m, side)) is not None), "") for side in ("ge", "le")
            )
            span = f"{low} to {high}" if high else f"{low} up"
            return f"{word} from {span}" + (", or auto" if "auto" in self.extra else "")
        names = "names of letters, digits and _.:-, at most 128 characters each"
        return f"{names}, separated by commas" if self.plain == Names else names if self.name == "worker_id" else "a text"


def bounds(kind: Any) -> list[Meta]:
    return [meta for meta in getattr(kind, "__metadata__", ()) if isinstance(meta, Meta)]


def settings_of(kind: type[Settings]) -> dict[str, Setting]:
    """The settings of one program, in order. A field without a description is not a setting."""
    found: dict[str, Setting] = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        metas = bounds(hints[field.name])
        text = next((meta.description for meta in metas if meta.description), None)
        if text is not None:
            extra = next((meta.extra for meta in metas if meta.extra), None) or {}
            found[field.name] = Setting(field.name, hints[field.name], text, field.default, extra)
    return found


def is_embedded(url: str) -> bool:
    """Whether a storage lies in files of this machine: asking it costs next to nothing, and it is away only if broken."""
    return url.partition(":")[0].lower() in EMBEDDED


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:  # a name may resolve to anything
        return False


def cpu_count() -> int:
    """CPUs this process may use, by its affinity and its cgroup's quota."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return usable
    return usable if quota == "max" else max(1, min(usable, -(-int(quota) // int(period))))
