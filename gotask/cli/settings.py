"""`gotask config`: which settings hold, where each came from, and whether they make sense."""

import argparse
from typing import Any

from gotask.cli import exits, flags, output
from gotask.settings import KINDS, settings_of


def add(sub: Any) -> None:
    noun = flags.nouns(flags.command(sub, "config", None, "Show and check the configuration.", "gotask config show --origin"))
    examples = "gotask config show\ngotask config show --origin"
    parser = flags.command(noun, "show", show, "Show the settings that hold here; secrets stay hidden.", examples, *KINDS)
    parser.add_argument("--origin", action="store_true", help="also say where each came from")
    flags.reading(parser)
    flags.command(noun, "validate", validate, "Check flags, environment and gotask.toml.", "gotask config validate", *KINDS)


def show(args: argparse.Namespace) -> int:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for kind in KINDS:
        held = flags.settings(kind, args)
        for one in settings_of(kind).values():
            key = (one.name, one.shown(getattr(held, one.name)), held.origin(one.name))
            rows.setdefault(key, []).append(kind.SECTION)
    found = [
        {"setting": name, "value": value, "programs": programs, "origin": origin}
        for (name, value, origin), programs in sorted(rows.items())
    ]
    if args.json:
        output.as_json(found)
        return exits.OK
    columns = ["setting", "value", "programs", *(["origin"] if args.origin else [])]
    output.table(columns, ([row[column] for column in columns] for row in found))
    return exits.OK


def validate(args: argparse.Namespace) -> int:
    for kind in KINDS:
        flags.settings(kind, args)
    output.say("The configuration is valid.")
    return exits.OK
