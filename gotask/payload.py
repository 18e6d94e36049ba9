"""JSON at the door: what may come in as a payload, and how Python values become payloads and results.

Bytes are checked once and then kept as they came. The rules are those any JSON reader can live with, so that no stored job
can break a worker, a browser or another language's client: UTF-8, finite numbers, bounded depth, nodes and size.
"""

import re
from collections.abc import Iterator
from math import isfinite
from typing import Any, Final

import msgspec

from gotask.errors import InvalidInput, TooLarge
from gotask.model import PAYLOAD_MAX

DEPTH_MAX: Final = 32  #: arrays and objects inside each other; readers in other languages recurse
NODES_MAX: Final = 100_000  #: values in one document; each costs a reader up to a hundred bytes of memory

NULL: Final = b"null"
HALF_A_PAIR: Final = "it has half a surrogate pair, such as \\ud800 alone; send both halves."
TOO_LARGE_A_NUMBER: Final = "a number is too large for JSON's double"
TOO_LONG_A_NUMBER: Final = "a number has more than 4300 digits, too many for most readers; send it as text"
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-bA-B]")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b"[]{},"))
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_PLAIN: Final = frozenset({str, int, bool, type(None)})  # leaves that have nothing to hide


def check(raw: bytes) -> None:
    """Refuse what must not be stored: TooLarge above 1 MiB, InvalidInput for anything that is not sound JSON."""
    if len(raw) > PAYLOAD_MAX:
        raise TooLarge(f"The JSON is {len(raw)} bytes long; at most {PAYLOAD_MAX} are accepted.")
    try:
        _decode(raw)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise InvalidInput(unreadable(error, raw, "The JSON")) from None
    _check_shape(raw)


def check_object(raw: bytes) -> None:
    """`check`, and refuse what no task could take: arguments have names, so a payload is an object."""
    check(raw)
    if raw.lstrip()[:1] != b"{":
        raise InvalidInput("a JSON object is expected, with the task's arguments by name.")


def is_text(text: str) -> bool:
    """Whether UTF-8 can say it, and so a store can keep it."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def check_text(name: str, text: str | None) -> None:
    """Refuse by its name what nothing can keep."""
    if text is not None and not is_text(text):
        raise InvalidInput(f"{name}: {HALF_A_PAIR}")


def unreadable(error: Exception, raw: bytes, subject: str) -> str:
    """Why `raw` is no JSON that GoTask takes, as a sentence about `subject`."""
    if isinstance(error, UnicodeDecodeError):
        return f"{subject} is not valid UTF-8: encode it as UTF-8, as JSON has to be."
    if isinstance(error, RecursionError):
        return _too_deep(subject)
    if isinstance(error, msgspec.ValidationError):  # the only limits an untyped decoder has are those of numbers
        what, _, place = str(error).replace("`", "").partition(" - ")
        text = TOO_LONG_A_NUMBER if what.startswith("Integer") else TOO_LARGE_A_NUMBER
        return f"{text}{place and ', ' + place}."
    if "surrogate" in str(error) or ("truncated" in str(error) and _SURROGATE.search(raw)):
        return f"{subject} is not valid JSON: {HALF_A_PAIR}"
    return f"{subject} is not valid JSON: {_flat(error)}."


def encode(value: object, *, typed_keys: bool = False) -> bytes:
    """`value` as JSON that `check` accepts; InvalidInput names the place that JSON cannot hold.

    JSON knows only string keys; `typed_keys` says that the reader has type hints to turn them back into what they were.
    """
    if value is None:
        return NULL
    try:
        raw: bytes = _encode(value)
    except Exception as error:
        raise InvalidInput(_why_not(value, error)) from None
    if len(raw) > PAYLOAD_MAX:
        raise TooLarge(f"As JSON the value is {len(raw)} bytes long; at most {PAYLOAD_MAX} are accepted.")
    if not (_is_flat(value) and len(raw) < NODES_MAX):
        _check_shape(raw)
        if not _is_plain(value):
            _check_value(value, typed_keys)
    return raw


def _flat(error: Exception) -> str:
    """An error's text, to go on a sentence."""
    text = str(error).removeprefix("JSON is malformed: ")
    return text[:1].lower() + text[1:].replace("`", "")


def _too_deep(subject: str) -> str:
    return f"{subject} nests deeper than {DEPTH_MAX} levels; flatten it, or store it elsewhere and send a reference."


def _check_shape(raw: bytes) -> None:
    """Depth and number of values of sound JSON. A cheap upper bound settles nearly every document."""
    if len(raw) <= 2 * DEPTH_MAX or (len(raw) < NODES_MAX and raw.count(b"[") + raw.count(b"{") <= DEPTH_MAX):
        return
    bones = _STRING.sub(b"", raw).translate(_SQUARE, _NOT_STRUCTURE)
    if 1 + bones.count(b",") + bones.count(b"[") > NODES_MAX + bones.count(b"[]"):
        raise InvalidInput(f"The JSON has more than {NODES_MAX} values; split it, or send a reference.")
    bones = bones.replace(b",", b"")
    for _ in range(DEPTH_MAX):  # each pass takes the innermost level away
        if not bones:
            return
        bones = bones.replace(b"[]", b"")
    if bones:
        raise InvalidInput(_too_deep("The JSON"))


def _is_flat(value: object) -> bool:
    """Whether `value` is a dict of string keys and plain leaves: most payloads are, and need no further look."""
    if type(value) is not dict:
        return False
    for key, item in value.items():  # noqa: SIM110 - all() would cost a generator for each payload
        if type(key) is not str or type(item) not in _PLAIN:
            return False
    return True


def _is_plain(value: object) -> bool:
    """Whether `value` is made of nothing but string keys and finite leaves of JSON's own types. False decides nothing."""
    kind = type(value)
    if kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]  # mypy does not narrow by `kind`
            if type(key) is not str or (type(item) not in _PLAIN and not _is_plain(item)):
                return False
        return True
    if kind is list or kind is tuple:
        for item in value:  # type: ignore[attr-defined]  # noqa: SIM110 - all() would cost a generator for each
            if type(item) not in _PLAIN and not _is_plain(item):
                return False
        return True
    return kind in _PLAIN or (kind is float and isfinite(value))  # type: ignore[arg-type]


def _check_value(value: object, typed_keys: bool) -> None:
    """Refuse what the encoder changes without a word: NaN and infinities become null, keys become strings."""
    for place, key, item in _walk(msgspec.to_builtins(value)):
        if type(item) is float and not isfinite(item):
            raise InvalidInput(f"{place} is {item}, which JSON cannot hold; use None or a string.")
        if key is not None and (not typed_keys or (type(key) is float and not isfinite(key))):
            raise InvalidInput(f"{place} has the key {key!r}, but keys in JSON are strings; use str({key!r}).")


def _walk(value: object) -> Iterator[tuple[str, object, object]]:
    """(place, a key that is not a string or None, item) of everything worth a look in `value`."""
    stack: list[tuple[str, Any]] = [("The value", value)]
    while stack:
        place, item = stack.pop()
        kind = type(item)
        if kind is dict:
            for key, inner in item.items():
                if type(key) is not str:
                    yield place, key, None
                if type(inner) not in _PLAIN:
                    stack.append((_within(place, f".{key}"), inner))
        elif kind is list or kind is tuple:
            stack.extend((_within(place, f"[{n}]"), inner) for n, inner in enumerate(item) if type(inner) not in _PLAIN)
        elif kind is float:
            yield place, None, item


def _within(place: str, step: str) -> str:
    return ("$" if place == "The value" else place) + step


def _why_not(value: object, error: Exception) -> str:
    """The sentence for a value that the encoder refused: the first leaf that fails alone is the culprit."""
    if isinstance(error, RecursionError):
        return f"The value contains itself, or nests deeper than {DEPTH_MAX} levels, which JSON cannot hold."
    stack: list[tuple[str, Any]] = [("The value", value)]
    while stack:
        place, item = stack.pop()
        try:
            _encode(item)
        except Exception as reason:
            inner = _children(place, item)
            if not inner:
                return f"{place} cannot become JSON: {_flat(reason)}."
            stack += reversed(inner)
    return f"The value cannot become JSON: {_flat(error)}."


def _children(place: str, item: object) -> list[tuple[str, Any]]:
    if isinstance(item, dict):
        return [(_within(place, f".{key}"), inner) for key, inner in item.items()]
    if isinstance(item, (list, tuple, set, frozenset)):
        return [(_within(place, f"[{n}]"), inner) for n, inner in enumerate(item)]
    if isinstance(item, msgspec.Struct):
        return [(_within(place, f".{name}"), getattr(item, name)) for name in item.__struct_fields__]
    return []
