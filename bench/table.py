"""Prints the figures of a benchmark run, each beside its budget: `python -m bench.table results.json`."""

import json
import operator
import platform
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

COMPARE = {">=": operator.ge, "<=": operator.le}


def verdict(value: float, budget: str) -> str:
    if not budget:
        return ""
    sign, bound = budget.split()
    return "met" if COMPARE[sign](value, float(bound.replace(",", ""))) else "[red]missed[/red]"


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.3g}"


def main(path: str) -> int:
    table = Table(title=f"Measured on {platform.machine()}, Python {platform.python_version()}", title_justify="left")
    for name, side in (("figure", "left"), ("measured", "right"), ("unit", "left"), ("budget", "right"), ("", "left")):
        table.add_column(name, justify=side)
    for one in json.loads(Path(path).read_text())["benchmarks"]:
        for figure in one["extra_info"].get("figures", []):
            value, budget = figure["value"], figure["budget"]
            table.add_row(figure["name"], shown(value), figure["unit"], budget, verdict(value, budget))
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
