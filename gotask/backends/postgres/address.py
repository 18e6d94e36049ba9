"""PostgreSQL URLs: what libpq makes of them, and the options of ours that follow the question mark.

postgres://user:password@host:5432/database?sslmode=verify-full     one server; postgresql:// is the same
postgres://host1,host2/database                                     whichever of them takes writes
postgres:///database?host=/run/postgresql                           by the folder of its socket
postgres://?service=jobs                                            as ~/.pg_service.conf says
"""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import parse_qsl, quote, urlsplit

from msgspec import Struct
from psycopg import Error, pq
from psycopg.conninfo import conninfo_to_dict

from gotask.errors import NotConfigured
from gotask.log import scrub

SCHEMA_PATTERN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,48}")
HOST_PATTERN: Final = re.compile(r"(\[[^]]*\]|[^:]*)(:\d*)?")
CONNECT_S: Final = 2.0  #: seconds for a connection to be made; libpq knows no less


class Address(Struct, kw_only=True):
    """What a URL says."""

    shown: str  #: the URL for people, without secrets and options
    login: dict[str, Any]  #: what libpq is told
    schema: str = "gotask"  #: where the tables are, so that two projects in one database never meet
    timeout: float = 5.0  #: seconds after which a call is given up
    notify: float | None = 0.05  #: seconds between two notifications of one topic; None: none are sent or listened to
    poll: float = 0.25  #: seconds between looks for what nobody is told of
    connections: int = 10  #: that one process holds at most
    durable: bool = True  #: refuse a server that answers before it has written
    migrate: bool = True  #: make the tables of a schema that has none


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not low <= seconds <= high:
            raise ValueError(f"seconds from {low:g} to {high:g}")
        return seconds

    return read


def _notify(text: str) -> float | None:
    if text.lower() in ("off", "false", "no"):
        return None
    try:
        return _seconds(0.0, 10.0)(text)
    except ValueError:
        raise ValueError("off, or seconds from 0 to 10 between two notifications") from None


def _schema(text: str) -> str:
    if not SCHEMA_PATTERN.fullmatch(text) or text.startswith("pg_"):
        raise ValueError("up to 48 letters, digits and _.:-, and must not begin with pg_")
    return text


def _yes(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
        raise ValueError("true or false")
    return text.lower() in ("true", "1", "yes", "on")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 1000:
        raise ValueError("a whole number from 1 to 1000")
    return int(text)


#: options of ours -> how their text is read; a ValueError says what is expected
OURS: Final[Mapping[str, Callable[[str], Any]]] = {
    "schema": _schema,
    "timeout": _seconds(0.05, 300),
    "notify": _notify,
    "poll": _seconds(0.01, 300),
    "connections": _number,
    "durable": _yes,
    "migrate": _yes,
}
#: a connection that is half dead is noticed; what the URL says goes before
USUAL: Final = {"application_name": "gotask", "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3"}


def parse(url: str) -> Address:
    """Read a URL. Raises NotConfigured with a sentence that names what is wrong in it."""
    if url in ("postgres", "postgresql"):
        url = f"{url}://"
    try:
        parts = urlsplit(url)
    except ValueError:
        _refuse_unseen()
    hosts = parts.netloc.rpartition("@")[2].split(",")
    cut = parts.fragment or "@" in parts.query.partition("=")[0] or (parts.netloc and "@" in parts.path)
    if cut or not all(HOST_PATTERN.fullmatch(host) for host in hosts):
        _refuse_unseen()
    ours, theirs = _options(url, parts.query)
    query = "&".join(f"{name}={quote(text, safe='/')}" for name, text in theirs.items())
    try:
        login = conninfo_to_dict(f"postgresql://{parts.netloc}{parts.path}{query and '?' + query}")
    except (Error, UnicodeError):
        _refuse_unseen()
    login = {**USUAL, **login}
    made = Address(shown=scrub(url.partition("?")[0]), login=login, **ours)
    login.setdefault("tcp_user_timeout", str(int(made.timeout * 1000)))
    login.setdefault("connect_timeout", str(int(CONNECT_S)))
    if "," in str(login.get("host", "")):
        login.setdefault("target_session_attrs", "read-write")
    return made


def _options(url: str, query: str) -> tuple[dict[str, Any], dict[str, str]]:
    ours: dict[str, Any] = {}
    theirs: dict[str, str] = {}
    known = [*OURS, *(option.keyword.decode() for option in pq.Conninfo.get_defaults())]
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in ours or name in theirs:
            _refuse(url, f"it says {name} twice")
        if name not in known and name != "ssl":
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else "known are those of libpq and " + ", ".join(sorted(OURS))
            _refuse(url, f"there is no option {name!r}; {hint}")
        if name not in OURS:
            theirs[name] = text
            continue
        try:
            ours[name] = OURS[name](text)
        except ValueError as error:
            _refuse(url, f"{name} is {text!r}, and must be {error}")
    return ours, theirs


def _refuse_unseen() -> NoReturn:
    """Refuse a URL of which any part may be a password."""
    raise NotConfigured(
        "The storage postgres://... cannot be used: write it as postgres://user:password@host:port/database, and in the user, "
        "the password or a path / as %2F, ? as %3F, # as %23, @ as %40, a space as %20, and so on."
    ) from None


def _refuse(url: str, why: str) -> NoReturn:
    raise NotConfigured(
        f"The storage {scrub(url.partition('?')[0])} cannot be used: {why}{'' if why.endswith('?') else '.'}"
    ) from None
