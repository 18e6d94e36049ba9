"""What is wrong with a value, said in one sentence that begins with its place: the same words for JSON, queries and Python."""

import difflib
import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final

import msgspec
from msgspec import inspect

from gotask import payload
from gotask.model import NAME_OR_NOTHING, NAME_PATTERN

NAME_RULE: Final = "use letters, digits and _ . : -, at most 128 characters"
CLOSE: Final = 0.65  #: how alike a name must be to what it may have been meant for
SHOWN: Final = 64  #: characters of a wrong value that are repeated
#: options that are durations, and may be given as a timedelta
DURATIONS: Final = ("delay", "retry_delay", "max_retry_delay", "timeout")

_AT: Final = re.compile(r"(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<place>[^`]*)`)?", re.DOTALL)
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`")
_GOT: Final = re.compile(r"Expected `(?P<wanted>[^`]*)`, got `(?P<got>[^`]*)`")
_BOUND: Final = re.compile(r"Expected `(?P<wanted>\w+)` (?P<length>of length )?(?P<sign>[<>]=?) (?P<limit>\S+)")
_PATTERN: Final = re.compile(r"Expected `str` matching regex (?P<pattern>.*)", re.DOTALL)
_ENUM: Final = "Invalid enum value "
_WORDS: Final = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "a boolean",
    "object": "an object",
    "array": "a list",
    "datetime": "a time",
    "date": "a date",
    "duration": "a duration",
    "uuid": "a UUID",
    "bytes": "bytes",
}
_SIGNS: Final = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}
_FORMS: Final = {
    "Invalid RFC3339 encoded datetime": "{value} is not a time; write it as 2030-01-01T00:00:00Z",
    "Invalid RFC3339 encoded date": "{value} is not a date; write it as 2030-01-01",
    "Invalid ISO8601 duration": "{value} is not a duration; write it as PT5M",
    "Number out of range": payload.TOO_LARGE_A_NUMBER,
    "Integer value out of range": payload.TOO_LONG_A_NUMBER,
}
_NO_ZONE: Final = "Expected `datetime` with a timezone component"
_UNSEEN: Final = object()


def sentence(error: Exception, kind: Any, given: object = _UNSEEN, noun: str = "field") -> str:
    """A decoder's complaint about `given`, JSON or Python values, which does not become a `kind`."""
    if not isinstance(error, msgspec.ValidationError):
        return payload.unreadable(error, given if isinstance(given, bytes) else b"", "it")
    what, place = split(error)
    if found := _UNKNOWN.fullmatch(what):
        return unknown(found[1], _fields(_kind_at(kind, place)), noun, place)
    if found := _MISSING.fullmatch(what):
        return f"{noun} {_joined(place, found[1])!r} is missing."
    text = _told(what, kind, place, _value_at(given, place))
    return f"{place}: {text}." if place else f"{text}."


def split(error: msgspec.ValidationError) -> tuple[str, str]:
    """A complaint's words, and the place they are about: empty for the whole."""
    match = _AT.fullmatch(str(error))
    assert match is not None  # the pattern takes any text
    place = (match["place"] or "").removeprefix(".")
    return match["what"], f"a key of {place or 'the object'}" if match["key"] else place


def unknown(name: str, possible: Iterable[str], noun: str, place: str = "") -> str:
    """The sentence for a name that is none of those possible."""
    names = list(possible)
    close = difflib.get_close_matches(name, names, n=1, cutoff=CLOSE)
    hint = f"did you mean {close[0]!r}?" if close else f"possible are {', '.join(names) or 'none'}."
    return f"{noun} {_joined(place, name[:SHOWN])!r} is not known; {hint}"


def not_a_name(value: object) -> str:
    """The half sentence for what should be the name of a type, a queue or a job."""
    return f"{_shown(value)} is not a name; {NAME_RULE}"


def begun(text: str) -> str:
    """A sentence that begins with a word of ours begins with a capital; a field's name stays as it is."""
    return text[:1].upper() + text[1:] if re.match(r"(field|option|parameter|expected|the) ", text) else text


def seconds(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with their durations in seconds, where Python code gave a timedelta."""
    found = dict(options)
    for name in DURATIONS:
        if isinstance(value := found.get(name), timedelta):
            found[name] = value.total_seconds()
    return found


def _told(what: str, kind: Any, place: str, value: object) -> str:
    if what.startswith(_ENUM):
        return f"{what.removeprefix(_ENUM)[:SHOWN]} is not one of {', '.join(_choices(_kind_at(kind, place)))}"
    if found := _PATTERN.fullmatch(what):
        known = found["pattern"] in (repr(NAME_PATTERN), repr(NAME_OR_NOTHING))
        return not_a_name(value) if known else f"expected text matching {found['pattern']}"
    if what == _NO_ZONE:
        remedy = "make it aware with tzinfo=UTC or .astimezone()" if isinstance(value, datetime) else "end it with Z or +00:00"
        return f"the time has no zone; {remedy}"
    if found := _BOUND.fullmatch(what):
        return _bound(found, value)
    if found := _GOT.fullmatch(what):
        return f"expected {_words(found['wanted'])}, got {_words(found['got'])}"
    text = _FORMS[what].format(value=_shown(value)) if what in _FORMS else what[:1].lower() + what[1:]
    return re.sub(r"`(\w+)`", lambda word: _WORDS.get(word[1], word[1]), text)


def _bound(found: re.Match[str], value: object) -> str:
    unit = ("characters" if found["wanted"] == "str" else "items") if found["length"] else ""
    limit = found["limit"].removesuffix(".0") + (f" {unit}" if unit else "")
    got = f", got {value}" if type(value) in (int, float) else ""
    return f"expected {_words(found['wanted'])} {_SIGNS[found['sign']]} {limit}{got}"


def _words(kinds: str) -> str:
    """`int | null` in words."""
    names = [name for name in kinds.split(" | ") if not (name == "int" and "float" in kinds)]
    words = [_WORDS.get(name, name) for name in names]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _shown(value: object) -> str:
    if value is _UNSEEN:
        return "this"
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _value_at(given: object, place: str) -> object:
    """The value at a place, if it can be found."""
    if isinstance(given, bytes):
        try:
            given = msgspec.json.decode(given)
        except (ValueError, RecursionError):
            return _UNSEEN
    for name, index in _STEP.findall(place):
        try:
            given = given[name] if name else given[int(index)]  # type: ignore[index]  # what does not fit raises
        except (KeyError, IndexError, TypeError, ValueError):
            return _UNSEEN
    return given


def _kind_at(kind: Any, place: str) -> list[inspect.Type]:
    """What msgspec knows of the type at a place: more than one for a union, none where the way is lost."""
    try:
        kinds = _parts(inspect.type_info(kind))
    except (TypeError, NameError):
        return []
    for name, _ in _STEP.findall(place):
        inner: list[inspect.Type] = []
        for one in kinds:
            if name:
                inner += [field.type for field in getattr(one, "fields", ()) if field.encode_name == name]
            else:
                inner += [found for way in ("item_type", "value_type") if (found := getattr(one, way, None)) is not None]
        kinds = [part for found in inner for part in _parts(found)]
    return kinds


def _parts(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return _parts(kind.type)
    return [part for one in kind.types for part in _parts(one)] if isinstance(kind, inspect.UnionType) else [kind]


def _fields(kinds: list[inspect.Type]) -> list[str]:
    return [field.encode_name for one in kinds for field in getattr(one, "fields", ())]


def _choices(kinds: list[inspect.Type]) -> list[str]:
    found: list[object] = []
    for one in kinds:
        if isinstance(one, inspect.EnumType):
            found += [member.value for member in one.cls if isinstance(member, Enum)]
        elif isinstance(one, inspect.LiteralType):
            found += one.values
    return [str(value) for value in found]
