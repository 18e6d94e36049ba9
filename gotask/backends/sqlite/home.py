"""Where an embedded store lives: from its URL to a path and settings.

    sqlite                    default.db in the state directory
    sqlite://name             name.db in the state directory
    sqlite:///jobs.db         a path relative to the working directory
    sqlite:////var/jobs.db    an absolute path (as in SQLAlchemy)
    memory, memory://name     default.db or name.db on the machine's shared memory

The state directory is $GOTASK_STATE_DIR, else $XDG_STATE_HOME/gotask, else ~/.local/state/gotask. Directories made here are
0700 and files 0600; one in a place that others can write to is refused unless it is ours alone.
"""

import difflib
import os
import re
import stat
import tempfile
from contextlib import suppress
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from gotask.errors import NotConfigured

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
TIMEOUT_S: Final = 5.0  #: seconds one call may wait for the store before it answers BackendDown
PARAMETERS: Final = ("timeout",)


class Home(Struct, frozen=True):
    """A store's file, how durably it is written, and what it promises."""

    path: str
    durable: bool
    timeout: float
    promise: str


SQLITE_PROMISE: Final = "Once enqueue has answered, the job survives a loss of power: it was synced to the disk at {path}."
MEMORY_PROMISE: Final = (
    "Once enqueue has answered, the job survives a crash of every GoTask process, "
    "but not a reboot or a clearing of shared memory at {path}."
)


def sqlite_home(url: str) -> Home:
    """The home that a `sqlite` URL names."""
    parts = urlsplit(url if ":" in url else f"{url}://")
    timeout = _timeout(parts.query, url)
    if not parts.path:
        folder = private_folder(state_folder())
        path = os.path.join(folder, f"{_name(parts.netloc, url)}.db")
    elif parts.netloc:
        raise NotConfigured(
            f"The storage {url!r} has two slashes before a path; write sqlite:///jobs.db for a file in the working "
            "directory and sqlite:////var/jobs.db for an absolute path."
        )
    else:
        path = os.path.realpath(unquote(parts.path[1:]))
        if not os.path.isdir(os.path.dirname(path)):
            raise NotConfigured(f"The folder {os.path.dirname(path)} of the storage {url!r} is not there: make it first.")
        if os.path.isdir(path):
            raise NotConfigured(f"The storage {url!r} names a folder; name a file in it, such as {path}/jobs.db.")
    return Home(path, True, timeout, SQLITE_PROMISE.format(path=path))


def memory_home(url: str) -> Home:
    """The home that a `memory` URL names."""
    parts = urlsplit(url if ":" in url else f"{url}://")
    timeout = _timeout(parts.query, url)
    if parts.path:
        raise NotConfigured(f"The storage {url!r} has a path; memory takes a name only, such as memory://jobs.")
    root = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    folder = private_folder(os.path.join(root, f"gotask-{os.geteuid()}"))
    path = os.path.join(folder, f"{_name(parts.netloc, url)}.db")
    return Home(path, False, timeout, MEMORY_PROMISE.format(path=path))


def private_folder(path: str) -> str:
    """The folder at `path`, made 0700 if need be; NotConfigured unless it is ours alone."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as e:
        raise NotConfigured(f"The folder {path} cannot be made ({e.strerror}); set GOTASK_STATE_DIR to one that can.") from e
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NotConfigured(
            f"The folder {path} must be a real folder that belongs to this user with mode 0700, because it holds jobs; "
            "remove it, or set its owner and mode."
        )
    return path


def claim_file(path: str) -> None:
    """Make an empty file 0600 if there is none.

    An existing one is not opened: closing any descriptor of a database drops the locks this process holds on it.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))


def state_folder() -> str:
    chosen = os.environ.get("GOTASK_STATE_DIR")
    if chosen:
        return os.path.abspath(chosen)
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "gotask")


def _name(name: str, url: str) -> str:
    name = name or "default"
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise NotConfigured(f"The storage {url!r} has a name with other characters than A-Z a-z 0-9 _ . -; choose another.")
    return name


def _timeout(query: str, url: str) -> float:
    given = dict(parse_qsl(query, keep_blank_values=True))
    for key in given:
        if key not in PARAMETERS:
            close = difflib.get_close_matches(key, PARAMETERS, 1) or PARAMETERS
            raise NotConfigured(f"The storage {url!r} has an unknown parameter {key!r}; did you mean {close[0]!r}?")
    try:
        timeout = float(given.get("timeout", TIMEOUT_S))
    except ValueError:
        timeout = -1.0
    if not 0 < timeout <= 3600:
        raise NotConfigured(f"The parameter timeout of the storage {url!r} must be seconds between 0 and 3600.")
    return timeout
