"""The statements of queries.sql, by name."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

from gotask.backends.postgres.rows import COLUMNS, MOVING

FOLDER: Final = files("gotask.backends.postgres")
_SCHEMA: Final = "gotask."  #: the schema's name in queries.sql
#: what several statements of it say; moving.Standing reads the last
_WORDS: Final = {
    "{lazy}": "set_config('synchronous_commit', 'off', true) AS lazy",
    "{columns}": ", ".join(COLUMNS),
    "{standing}": f"{', '.join(MOVING)}, (SELECT extract(epoch FROM forgotten_until)::float8 FROM gotask.tended) AS forgotten, "
    "nextval('gotask.places') AS fresh, extract(epoch FROM coalesce(%s, clock_timestamp()))::float8 AS instant",
}


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@cache
def statements(schema: str) -> Mapping[str, str]:
    """Every statement for one schema, by the words between `-- ` and ` --` above it."""
    text = FOLDER.joinpath("queries.sql").read_text()
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("-- ") and line.endswith(" --"):
            name = line[3:-3]
            found[name] = ""
        elif name:
            found[name] += f"{line}\n"
    for word, meaning in (_WORDS | {_SCHEMA: f"{quoted(schema)}."}).items():
        found = {name: body.replace(word, meaning).strip() for name, body in found.items()}
    return found
