"""What PostgreSQL really did: the plans of all statements that a call led to, inside of functions too, and what they read.

The server writes them into its log (auto_explain), for connections by `explained(url)` only.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote

from tests.servers.postgres import Postgres

R = TypeVar("R")

#: of a server whose plans are to be seen
SETTINGS: Final[dict[str, object]] = {
    "shared_preload_libraries": "auto_explain", "autovacuum": "off", "shared_buffers": "512MB", "synchronous_commit": "local",
    "jit": "on",
    "auto_explain.log_analyze": "on", "auto_explain.log_buffers": "on", "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on", "auto_explain.log_format": "json",
}  # fmt: skip
_PLAN: Final = re.compile(r" plan:\n((?:\t.*\n)+)")


def explained(url: str) -> str:
    return f"{url}&options={quote('-c auto_explain.log_min_duration=0')}"


class Scan(NamedTuple):
    """One node of a plan that reads a table."""

    how: str
    table: str
    index: str
    rows: float  #: read, whether or not they were of use


class Plan(NamedTuple):
    statement: str
    root: dict[str, Any]
    compiled: bool  #: before it ran, which takes longer than a call may

    @property
    def buffers(self) -> int:
        """Blocks looked at, those of the statements inside of its functions too."""
        return int(self.root["Shared Hit Blocks"] + self.root["Shared Read Blocks"])

    def nodes(self, node: dict[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        node = node or self.root
        yield node
        for inner in node.get("Plans", ()):
            yield from self.nodes(inner)

    @property
    def scans(self) -> list[Scan]:
        found = []
        for node in self.nodes():
            if "Relation Name" in node and "Scan" in node["Node Type"] and node["Actual Loops"]:
                read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                name = node.get("Index Name", "")
                found.append(Scan(node["Node Type"], node["Relation Name"], name, read * node["Actual Loops"]))
        return found


def during(server: Postgres, call: Callable[[], R]) -> tuple[list[Plan], R]:
    """The plans of everything that a call asked, and its answer."""
    before = len(server.log)
    answer = call()
    found = []
    for text in _PLAN.findall(server.log[before:]):
        told = json.loads(re.sub(r"^\t", "", text, flags=re.MULTILINE))
        found.append(Plan(told["Query Text"], told["Plan"], "JIT" in told))
    return found, answer
