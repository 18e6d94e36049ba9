"""The command line, made from the settings and nouns: nothing is typed twice. Flags work as -storage=x and --storage x."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Struct

from gotask.cli import exits
from gotask.config import did_you_mean, load
from gotask.errors import InvalidInput
from gotask.log import clean
from gotask.settings import ClientSettings, Setting, Settings, settings_of
from gotask.states import State

SETTING: Final = "setting."  #: before a setting's name in the namespace, where a command's own options also live
GROUP: Final = "settings"  #: title of their part of the help
SURE: Final = 0.8  #: how alike a word must be to a flag to be a misspelt one, and not a short flag with its value
T = TypeVar("T", bound=Struct)
S = TypeVar("S", bound=Settings)
Run = Callable[[argparse.Namespace], int]


class Help(argparse.RawDescriptionHelpFormatter):
    """Help in which a flag's value stands once, after its spellings."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"


class Parser(argparse.ArgumentParser):
    """argparse with errors of one sentence, and a guess at what was meant."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", Help)
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # judged here and not at the top, since only the command's own parser knows which flags it has
        words = sys.argv[1:] if args is None else list(args)
        self.refuse_misspelt(words)
        known, rest = super().parse_known_args(words, namespace)
        if rest:
            self.unknown(str(rest[0]))
        return known, []

    def unknown(self, word: str) -> NoReturn:
        word = word.split("=")[0]
        thing = "flag" if word.startswith("-") else "argument here,"
        self.error(f"There is no {thing} {word}{did_you_mean(word, self._option_string_actions)}")

    def refuse_misspelt(self, words: list[str]) -> None:
        """Stop at a misspelt `-http-prt`, which argparse would take for -h with more letters behind it."""
        commands = {name for action in self._subparsers_actions() for name in action.choices}
        for word in words:
            if word == "--" or word in commands:
                return
            name = word.split("=")[0]
            short = self._option_string_actions.get(word[:2])
            if len(name) < 3 or word[1] == "-" or short is None or name in self._option_string_actions:
                continue
            letters = {letter for letter in name[1:] if f"-{letter}" in self._option_string_actions}
            meant = short.nargs != 0 or letters == set(name[1:])  # `-c4`, or `-yh`: several in one
            longer = [flag for flag in self._option_string_actions if len(flag) > 2]
            likely = word[1].islower() and difflib.get_close_matches(name, longer, 1, SURE)
            if not meant or likely:
                self.unknown(word)

    def _subparsers_actions(self) -> "list[argparse._SubParsersAction[Any]]":
        return [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]

    def format_help(self) -> str:
        """As argparse does it, but for the usage line, which leaves the settings out: they would fill the screen."""
        formatter = self._get_formatter()
        own = [action for action in self._actions if not action.dest.startswith(SETTING)]
        formatter.add_usage(self.usage, own, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_text(group.description)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '?([^'\s]*)'? \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[2])
            message = f"There is no command {choice[1]}{did_you_mean(choice[1], known)}"
        message = re.sub(r"^argument (\S+?)(?:/\S+)?:", r"\1:", message).rstrip(".")
        self.exit(exits.USAGE, f"{self.prog}: {clean(message)}{'' if message.endswith('?') else '.'} Try: {self.prog} --help\n")


def command(sub: Any, name: str, run: Run | None, about: str, example: str, *kinds: type[Settings]) -> Parser:
    """A sub-command with its help: what it does, an example, the settings it takes. Without `run` it holds commands."""
    lines = "\n".join(f"  {line.strip()}" for line in example.strip().splitlines())
    epilog = f"{'example' if lines.count(chr(10)) == 0 else 'examples'}:\n{lines}\n\n{exits.DOC}"
    parser: Parser = sub.add_parser(name, help=about, description=about, epilog=epilog)
    if run is not None:
        parser.set_defaults(run=run)
        settings_flags(parser, *(kinds or (ClientSettings,)))
    return parser


def nouns(parser: Parser) -> Any:
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True)


def reading(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def supervised(parser: argparse.ArgumentParser) -> None:
    """The flag by which `gotask up` tells its children that it has looked at all that they would look at first."""
    parser.add_argument("--supervised", action="store_true", help=argparse.SUPPRESS)


def settings_flags(parser: argparse.ArgumentParser, *kinds: type[Settings]) -> None:
    """The flags of the settings of these programs, each once. Not given means absent, so a flag may stand at any level."""
    every = {name: one for kind in kinds for name, one in settings_of(kind).items()}
    group = parser.add_argument_group(GROUP, "also as GOTASK_NAME in the environment, or name = ... in gotask.toml")
    group.add_argument(*spelled("config"), **absent("config"), metavar="FILE", help="configuration file [./gotask.toml]")
    for one in every.values():
        shorts = [one.extra["short"]] if "short" in one.extra else []
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if one.plain is bool else {}
        text = f"{one.help} [{one.shown(one.default)}]" if one.shown(one.default) else one.help
        group.add_argument(
            *shorts, *spelled(one.name), **absent(one.name), **switch, metavar=metavar(one), help=text.replace("%", "%%")
        )


def spelled(name: str) -> tuple[str, str]:
    dashed = name.replace("_", "-")
    return f"-{dashed}", f"--{dashed}"


def absent(name: str) -> dict[str, Any]:
    return {"dest": SETTING + name, "default": argparse.SUPPRESS}


def metavar(one: Setting) -> str:
    words = {bool: "BOOL", int: "N", float: "SECONDS"}
    return "SIZE" if "unit" in one.extra else words.get(one.plain, one.name.rpartition("_")[2].upper())


def given(args: argparse.Namespace) -> dict[str, str]:
    """The settings typed as flags, by name."""
    return {name.removeprefix(SETTING): value for name, value in vars(args).items() if name.startswith(SETTING)}


def settings(kind: type[S], args: argparse.Namespace) -> S:
    return load(kind, given(args))


def struct_flags(parser: argparse.ArgumentParser, kind: type[Struct], helps: dict[str, str]) -> None:
    """A flag for each field of `kind` that `helps` explains."""
    for name, text in helps.items():
        if name not in kind.__struct_fields__:
            raise LookupError(f"{kind.__name__} has no field {name}")
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=name, metavar=name.rpartition("_")[2].upper(), help=text.replace("%", "%%")
        )


def state(text: str | None) -> State | None:
    """A job's state as typed, in any case. Raises InvalidInput that lists them."""
    if text is None:
        return None
    try:
        return State(text.upper())
    except ValueError:
        raise InvalidInput(f"There is no status {text!r}; it is one of: {', '.join(State)}.") from None


def struct(kind: type[T], values: dict[str, Any]) -> T:
    """A noun from texts as typed. Raises InvalidInput naming the flag."""
    try:
        return msgspec.convert({name: value for name, value in values.items() if value is not None}, kind, strict=False)
    except msgspec.ValidationError as e:
        what, _, where = str(e).partition(" - at `$.")
        flag = where.rstrip("`").replace("_", "-")
        raise InvalidInput(f"--{flag} does not fit: {what[0].lower()}{what[1:]}." if where else f"{what}.") from None


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """`--filter status=FAILED queue=mail` as a dict. Raises InvalidInput for what is not name=value."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InvalidInput(f"--filter takes name=value, such as status=FAILED, and not {text!r}.")
        found[name.strip().replace("-", "_")] = value.strip()
    return found
