"""Who may ask: loopback for everybody on this machine, API keys with a role elsewhere, and no help to foreign web pages."""

import hmac
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import falcon.asgi

from gotask.api.problem import Problem
from gotask.calls import Scope
from gotask.errors import NotConfigured, Unauthorized
from gotask.settings import is_loopback

#: role -> the scopes it may use
ROLES: Final[dict[str, frozenset[Scope]]] = {
    "read": frozenset({"read"}),
    "enqueue": frozenset({"read", "enqueue"}),
    "operate": frozenset({"read", "enqueue", "operate"}),
    "admin": frozenset({"read", "enqueue", "operate", "admin"}),
}
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
SAME_SITE: Final = frozenset({"same-origin", "none"})
_DIGEST: Final = re.compile(r"^[0-9a-f]{64}$")


class Key(NamedTuple):
    """An API key as it is kept: who it is for, what it may do, and its SHA-256."""

    name: str
    role: str
    digest: str


def parse_keys(texts: Iterable[str]) -> list[Key]:
    """Keys from `name:role:sha256hex`; a text without a colon is the key itself, as admin.

    Raises NotConfigured; the text is never shown, it may be a secret.
    """
    keys = []
    for number, text in enumerate(texts, 1):
        if ":" not in text:
            keys.append(Key(f"key {number}", "admin", sha256(text.encode()).hexdigest()))
            continue
        name, role, digest = [*text.strip().rsplit(":", 2), "", ""][:3]
        if role not in ROLES or not _DIGEST.match(digest.lower()):
            raise NotConfigured(
                f"API key {number} is not of the form name:role:sha256: the role is one of {', '.join(ROLES)}, "
                "and the last part is what `printf %s KEY | sha256sum` prints."
            )
        keys.append(Key(name, role, digest.lower()))
    return keys


class Gate:
    """Judges each request by where it was sent, where it comes from and who sent it."""

    def __init__(self, address: str = "127.0.0.1", keys: Sequence[Key] = (), allow_anonymous: bool = False) -> None:
        self._keys = keys
        self._anonymous = allow_anonymous
        self._hosts = {"localhost", "127.0.0.1", "::1", address} if is_loopback(address) else None

    def screen(self, req: falcon.asgi.Request) -> None:
        """Refuse what a web page of somebody else makes a browser send."""
        host = req.get_header("Host") or ""
        if self._hosts is not None and _name(host) not in self._hosts:
            raise Problem(421, f"This server answers for localhost, not for {host[:128]!r}; send it to http://localhost.")
        if req.method in SAFE:
            return
        site = req.get_header("Sec-Fetch-Site")
        origin = req.get_header("Origin")
        foreign = site not in SAME_SITE if site is not None else origin is not None and urlsplit(origin).netloc != host
        if foreign:
            raise Problem(403, "The request comes from a page of another site; changes are accepted from this one only.")

    def admit(self, req: falcon.asgi.Request, scope: Scope) -> None:
        """Refuse who may not use `scope`. Raises Unauthorized, or Problem 403 for a key whose role does not do."""
        if scope == "public" or not self._keys:
            return
        header = req.get_header("Authorization")
        if header is None and self._anonymous:
            return
        if header is None:
            raise Unauthorized
        kind, _, secret = header.partition(" ")
        found = self._find(secret.strip()) if kind.lower() == "bearer" else None
        if found is None:
            raise Unauthorized("The API key is not known here: check it, and send it as 'Authorization: Bearer <key>'.")
        if scope not in ROLES[found.role]:
            able = ", ".join(role for role, scopes in ROLES.items() if scope in scopes)
            raise Problem(403, f"The key {found.name!r} has the role {found.role}; this needs one of: {able}.")

    def _find(self, secret: str) -> Key | None:
        digest = sha256(secret.encode("utf-8", "replace")).hexdigest()
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def _name(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""
