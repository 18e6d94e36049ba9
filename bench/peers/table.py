"""Prints the comparison, fastest drain first: `python -m bench.peers.table build/peers.json`."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.table import shown

WIDTH = 150
OURS = "gotask"
COLUMNS = {  # name -> heading
    "enqueue": "enqueue\none by one\njobs/s",
    "enqueue_many": "enqueue\nin batches\njobs/s",
    "drain": "drain\n\njobs/s",
    "steady_p50_ms": "steady\np50\nms",
    "steady_p99_ms": "steady\np99\nms",
    "pickup_p50_ms": "pickup\np50\nms",
    "pickup_p99_ms": "pickup\np99\nms",
    "memory_mb": "idle\nmemory\nMB",
}


def cell(value: float | None) -> str:
    return "–" if value is None else shown(value)


def ordered(peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(peers, key=lambda peer: -(peer["figures"] or {"drain": 0})["drain"])


def ratio(peer: dict[str, Any], ours: float | None) -> str:
    return shown(peer["figures"]["drain"] / ours) if ours else "–"


def show(run: dict[str, Any]) -> None:
    peers = ordered(run["peers"])
    ours = next((peer["figures"]["drain"] for peer in peers if peer["name"] == OURS and peer["figures"]), None)
    table = Table(title=run["title"], title_justify="left")
    table.add_column("peer")
    table.add_column("version")
    for name, heading in COLUMNS.items():
        table.add_column(heading, justify="right")
        if name == "drain":
            table.add_column("to\nGoTask", justify="right")
            table.add_column("of\njobs", justify="right")
    for peer in peers:
        cells = [cell(peer["figures"][name]) for name in COLUMNS] if peer["figures"] else ["–"] * len(COLUMNS)
        after = list(COLUMNS).index("drain") + 1
        cells[after:after] = [ratio(peer, ours), f"{peer['jobs']:,}"] if peer["figures"] else ["–", "–"]
        table.add_row(peer["name"], peer["version"], *cells)
    console = Console(width=WIDTH)
    console.print(table)
    for line in run["notes"]:
        console.print(line, highlight=False, markup=False)
    for peer in peers:
        said = peer["error"] or f"{peer['settings']}. A job whose worker is killed {peer['killed']}."
        console.print(f"{peer['name']}: {said} [{peer['versions']}]", highlight=False, markup=False)


if __name__ == "__main__":
    show(json.loads(Path(sys.argv[1]).read_text()))
