"""One line of what `gotask doctor` found."""

from typing import Literal, NamedTuple

Verdict = Literal["ok", "warn", "bad"]


class Finding(NamedTuple):
    what: str
    verdict: Verdict
    says: str


def warn_if(what: str, trouble: str, well: str) -> Finding:
    """A warning if there is trouble, else that all is well."""
    return Finding(what, "warn", trouble) if trouble else Finding(what, "ok", well)


def bad_if(what: str, trouble: str, well: str) -> Finding:
    return Finding(what, "bad", trouble) if trouble else Finding(what, "ok", well)
