"""What the commands print: tables for people, JSON for programs. Nothing printed can drive the terminal."""

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gotask import clock
from gotask.cli import exits
from gotask.log import CONTROL, clean

if TYPE_CHECKING:  # imported where something is drawn: most commands print a line, and should not wait for it
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

WIDE: Final = 10_000  #: columns when nobody looks: a program that reads the output wants whole lines
GAP: Final = 2  #: blanks between two columns of a table
ELASTIC: Final = 12  #: columns that a cell of free text is left at least, before a whole column has to go
#: seconds per unit, for ages that a person reads
AGES: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
COLOURS: Final = {
    "SUCCESS": "green",
    "RUNNING": "cyan",
    "FAILED": "red",
    "RETRYING": "yellow",
    "CANCELLED": "dim",
    "EXPIRED": "dim",
    "paused": "yellow",
}


def console() -> "Console":
    """Looked up at each call, so that it follows a redirected standard output."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else WIDE)


def progress() -> "Progress":
    """A progress bar on standard error: the output stays clean for a pipe, and no bar is drawn where nobody looks."""
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def text(value: Any) -> str:
    """A cell: times as ages, lists as they are typed, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return age(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    if isinstance(value, msgspec.Raw):
        return bytes(value).decode(errors="replace")
    return str(value)


def age(moment: datetime) -> str:
    seconds = clock.now() - clock.to_epoch(moment)
    size, unit = next(((size, unit) for size, unit in AGES if abs(seconds) >= size), AGES[-1])
    count = f"{int(abs(seconds) / size)} {unit}"
    return f"{count} ago" if seconds >= 0 else f"in {count}"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    empty: str = "Nothing to show.",
    spare: Sequence[str] = (),
    elastic: str = "",
) -> None:
    """A table with one line per row; `empty` is said instead if there is none.

    Where a terminal is too narrow, the cells of `elastic` are cut short, then columns of `spare` go, the first first.
    """
    from rich.table import Table
    from rich.text import Text

    given = list(rows)
    found = [[clean(text(value)) for value in row] for row in given]
    if not found:
        say(empty)
        return
    widths = [max(map(len, column)) for column in zip(columns, *found, strict=True)]
    shown = fitting(columns, widths, spare, elastic, console().width)
    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for number in shown:
        right = all(isinstance(row[number], int | float) and not isinstance(row[number], bool) for row in given)
        whole = bool(elastic or spare) or number == 0  # an id is there to be copied
        drawn.add_column(
            Text(columns[number]),
            justify="right" if right else "left",
            no_wrap=whole,
            max_width=widths[number],
            overflow="ellipsis",
        )
    for row in found:
        drawn.add_row(*(Text(row[number], style=COLOURS.get(row[number], "")) for number in shown))
    draw(drawn)


def fitting(columns: Sequence[str], widths: list[int], spare: Sequence[str], elastic: str, room: int) -> list[int]:
    """The numbers of the columns that fit into `room`; `widths` is told how narrow the elastic one has to be."""
    shown = list(range(len(columns)))
    gone = list(spare)
    while True:
        need = sum(widths[number] for number in shown) + GAP * (len(shown) - 1)
        stretch = next((number for number in shown if columns[number] == elastic), None)
        give = max(0, widths[stretch] - max(ELASTIC, len(elastic))) if stretch is not None else 0
        if need - give <= room or not gone:
            if stretch is not None and need > room:
                widths[stretch] -= min(give, need - room)
            return shown
        shown.remove(columns.index(gone.pop(0)))


def draw(table: "Table") -> None:
    """Print a table: coloured on a terminal; else without the blanks that fill it up."""
    here = console()
    with exits.writing():
        with here.capture() as captured:
            here.print(table)
        lines = captured.get().splitlines()
        sys.stdout.write("".join(f"{line if here.is_terminal else line.rstrip()}\n" for line in lines))


def sheet(pairs: Iterable[tuple[str, Any]]) -> None:
    """One object, a field to a line; what is not set is left out. Times are whole here."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2))
    drawn.add_column(style="bold")
    drawn.add_column(overflow="fold")
    for name, value in pairs:
        word = value.isoformat() if isinstance(value, datetime) else text(value)
        if word:
            lines = "\n".join(clean(line) for line in word.splitlines())
            drawn.add_row(Text(name), Text(lines, style=COLOURS.get(word, "")))
    draw(drawn)


def as_json(value: Any) -> None:
    """`value` as JSON: indented on a terminal, where control characters beyond ASCII are escaped too."""
    encoded = msgspec.json.encode(value)
    if sys.stdout.isatty():
        encoded = msgspec.json.format(encoded, indent=2)
    shown = encoded.decode()
    if sys.stdout.isatty():
        lines = (CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in shown.split("\n"))
        shown = "\n".join(lines)
    with exits.writing():
        sys.stdout.write(shown + "\n")


def say(sentence: str) -> None:
    with exits.writing():
        print("\n".join(clean(line) for line in sentence.split("\n")))


def confirmed(question: str, yes: bool) -> bool:
    """Whether a person, or --yes, agreed. Without a terminal to ask on, only --yes counts."""
    if yes:
        return True
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"{clean(question)} [y/N] ")
    except EOFError:  # Ctrl-D
        say("")
        return False
    return bool(re.fullmatch(r"y(es)?", answer.strip(), re.IGNORECASE))
