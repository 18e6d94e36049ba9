"""Redis URLs: where the servers are, how to log in, and the options of ours that follow the question mark.

redis://user:password@host:6379/0                    one server; rediss:// over TLS
unix:///run/redis.sock?db=0                          one server, by its socket file
redis+sentinel://host1,host2,host3/service/0         the server that Sentinels name; rediss+sentinel:// over TLS
redis+cluster://host1:7000,host2:7000?shards=16      a Cluster; rediss+cluster:// over TLS
"""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

from gotask.errors import NotConfigured
from gotask.log import scrub

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
SHARDS_MAX: Final = 1024
UNSAFE: Final = re.compile(r"[\s\"'<>\[\]]")  #: what a user and a password have only as %XX
PREFIX_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Address(Struct, kw_only=True):
    """What a URL says."""

    shown: str  #: the URL for people, without secrets and options
    kind: str  #: single, sentinel or cluster
    hosts: list[tuple[str, int]]
    service: str = ""  #: the name that Sentinels know the server by
    login: dict[str, Any] = {}  #: what redis-py's connections take: db, username, password, path, TLS options
    sentinel_login: dict[str, Any] = {}
    prefix: str = "gotask"  #: of every key, so that two projects on one Redis never meet
    shards: int = 1  #: pieces that a store is cut into; fixed for as long as the store lives
    timeout: float = 2.0  #: seconds after which a call is given up
    wait: int = 0  #: replicas that must have an accepted job before its enqueue is answered


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 300:
        raise ValueError("seconds from 0.05 to 300")
    return seconds


def _prefix(text: str) -> str:
    if not PREFIX_PATTERN.fullmatch(text):
        raise ValueError("up to 64 letters, digits and _.:-")
    return text


def _yes(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError("true or false")
    return text.lower() in ("true", "1", "yes")


def _checking(text: str) -> str:
    if text not in ("required", "none"):
        raise ValueError("required or none")
    return text


def _file(text: str) -> str:
    if not os.access(text, os.R_OK):
        raise ValueError("the path of a file that can be read")
    return text


#: options of ours -> how their text is read; a ValueError says what is expected
OURS: Final[Mapping[str, Callable[[str], Any]]] = {
    "prefix": _prefix,
    "shards": _whole(1, SHARDS_MAX),
    "timeout": _seconds,
    "wait": _whole(0, 16),
}
#: options of a connection, named as redis-py names them
CONNECTION: Final[Mapping[str, Callable[[str], Any]]] = {
    "db": _whole(0, 1_000_000),
    "username": str,
    "password": str,
    "ssl_ca_certs": _file,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_check_hostname": _yes,
    "ssl_cert_reqs": _checking,
}
SENTINELS: Final[Mapping[str, Callable[[str], Any]]] = {"sentinel_username": str, "sentinel_password": str}


def parse(url: str) -> Address:
    """Read a URL. Raises NotConfigured with a sentence that names what is wrong in it."""
    if url in ("redis", "rediss"):
        url = f"{url}://localhost"
    scheme, slashes, rest = url.partition("://")
    if not slashes or UNSAFE.search(rest.partition("?")[0].rpartition("@")[0]):
        _refuse_unseen(scheme.partition(":")[0])
    try:
        parts = urlsplit(url)
        _unmistaken(parts)
        ours, login, sentinels = _options(url, parts)
        scheme, _, kind = parts.scheme.partition("+")
        login |= _credentials(parts)
        if scheme == "rediss":
            login["ssl"] = True
        if scheme == "unix":
            return Address(shown=_shown(url), kind="single", hosts=[], login=login | {"path": _socket(url, parts)}, **ours)
        hosts = _hosts(parts, SENTINEL_PORT if kind == "sentinel" else PORT)
    except ValueError:  # of urlsplit: a port or an IPv6 address that is none
        _refuse_unseen(scheme)
    service, database = "", parts.path.strip("/")
    if kind == "sentinel":
        service, _, database = database.partition("/")
        if not service:
            _refuse(url, "it lacks the name of the service, as in redis+sentinel://host/mymaster")
    if database:
        try:
            login["db"] = CONNECTION["db"](database)
        except ValueError:
            _refuse(url, f"the database after the address is {database!r}, and must be a number")
    if kind == "cluster" and login.pop("db", 0):
        _refuse(url, "a Cluster has no other database than 0")
    if kind == "cluster" and ours.get("wait"):
        _refuse(url, "wait is for one server with replicas, and not for a Cluster")
    if not kind and len(hosts) > 1:
        _refuse(url, "several servers need redis+sentinel:// or redis+cluster://")
    return Address(
        shown=_shown(url),
        kind=kind or "single",
        hosts=hosts,
        service=service,
        login=login,
        sentinel_login=sentinels,
        **ours,
    )


def _shown(url: str) -> str:
    return scrub(url.partition("?")[0])


def _unmistaken(parts: SplitResult) -> None:
    """Refuse a URL that was cut at a character of its password, without showing any of it."""
    rest = f"{parts.path}#{parts.fragment}#{parts.query if '=' not in parts.query.partition('@')[0] else ''}"
    if parts.fragment or (parts.netloc and "@" in rest):
        _refuse_unseen(parts.scheme)


def _options(url: str, parts: SplitResult) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    ours: dict[str, Any] = {}
    login: dict[str, Any] = {}
    sentinels: dict[str, Any] = {}
    tables = ((OURS, ours), (CONNECTION, login), (SENTINELS, sentinels))
    seen: set[str] = set()
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name in seen:
            _refuse(url, f"it says {name} twice")
        if name.startswith("ssl_") and name in CONNECTION and not parts.scheme.startswith("rediss"):
            _refuse(url, f"{name} is for TLS, and needs a URL that begins with rediss")
        if name in SENTINELS and not parts.scheme.endswith("+sentinel"):
            _refuse(url, f"{name} is for Sentinels, as in redis+sentinel://host/mymaster")
        seen.add(name)
        for readers, values in tables:
            if name in readers:
                try:
                    values[name] = readers[name](text)
                except ValueError as error:
                    _refuse(url, f"{name} is {text!r}, and must be {error}")
                break
        else:
            known = sorted([*OURS, *CONNECTION, *SENTINELS])
            near = difflib.get_close_matches(name, known, 1)
            _refuse(
                url, f"there is no option {name!r}; " + (f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(known))
            )
    return ours, login, {name.removeprefix("sentinel_"): value for name, value in sentinels.items()}


def _credentials(parts: SplitResult) -> dict[str, str]:
    user = parts.netloc.rpartition("@")[0]
    name, _, secret = user.partition(":")
    return {key: unquote(value) for key, value in (("username", name), ("password", secret)) if value}


def _hosts(parts: SplitResult, port: int) -> list[tuple[str, int]]:
    hosts = []
    for one in (parts.netloc.rpartition("@")[2] or "localhost").split(","):
        found = urlsplit(f"//{one}")
        if not found.hostname:
            _refuse_unseen(parts.scheme)
        hosts.append((unquote(found.hostname), port if found.port is None else found.port))
    return hosts


def _socket(url: str, parts: SplitResult) -> str:
    if not parts.path or parts.path == "/":
        _refuse(url, "it lacks the path of the socket, as in unix:///run/redis/redis.sock")
    return unquote(parts.path)


def _refuse_unseen(scheme: str) -> NoReturn:
    """Refuse a URL of which any part may be a password."""
    raise NotConfigured(
        f"The storage {scheme}://... cannot be used: write it as {scheme}://user:password@host:port, and in the user, the "
        "password or a path / as %2F, ? as %3F, # as %23, @ as %40, a space as %20, and so on."
    ) from None


def _refuse(url: str, why: str) -> NoReturn:
    raise NotConfigured(f"The storage {_shown(url)} cannot be used: {why}{'' if why.endswith('?') else '.'}") from None
