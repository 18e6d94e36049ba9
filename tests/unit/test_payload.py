"""JSON at the door: what is refused, with which words, and that what is accepted can be read by anybody."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gotask.errors import InvalidInput, TooLarge
from gotask.model import PAYLOAD_MAX
from gotask.payload import DEPTH_MAX, NODES_MAX, check, encode

DEEP = DEPTH_MAX + 1
BAD = {
    "nothing": (b"", "not valid JSON"),
    "half": (b'{"a": 1', "not valid JSON"),
    "two": (b"{} {}", "trailing characters"),
    "trailing comma": (b"[1,]", "trailing comma"),
    "single quotes": (b"{'a': 1}", "object keys must be strings"),
    "byte order mark": (b"\xef\xbb\xbf{}", "not valid JSON"),
    "raw control character": (b'"\x00"', "invalid character"),
    "invalid UTF-8 in a value": (b'"\xff"', "not valid UTF-8"),
    "invalid UTF-8 in a key": (b'{"\xff": 1}', "not valid UTF-8"),
    "overlong UTF-8": (b'"\xc0\xaf"', "not valid UTF-8"),
    "surrogate in UTF-8": (b'"\xed\xa0\x80"', "not valid UTF-8"),
    "lone high surrogate": (b'"\\ud800"', "half a surrogate pair"),
    "lone low surrogate": (b'"\\udc00"', "surrogate"),
    "high surrogate and a letter": (b'"\\ud800\\u0041"', "surrogate"),
    "NaN": (b"[NaN]", "not valid JSON"),
    "Infinity": (b"[-Infinity]", "not valid JSON"),
    "a number above all doubles": (b'{"a": 1e400}', "a number is too large for JSON's double, at $[...]."),
    "a negative one": (b"[-1E+400]", "at $[0]"),
    "too many digits": (b"9" * 4301, "4300 digits"),
    "too deep in arrays": (b"[" * DEEP + b"]" * DEEP, "deeper than 32"),
    "too deep in objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "deeper than 32"),
    "too deep under a key given twice": (b'{"a":' + b"[" * 32 + b"]" * 32 + b',"a":1}', "deeper than 32"),
    "deep enough to end a recursive reader": (b"[" * 400_000, "deeper than 32"),
    "too many values": (b"[" + b"1," * NODES_MAX + b"1]", "more than 100000 values"),
    "too many empty arrays": (b"[" + b"[]," * NODES_MAX + b"[]]", "more than 100000 values"),
}
GOOD = {
    "32 levels": b"[" * 32 + b"]" * 32,
    "brackets in a string": b'["' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'\\\\", 1]',
    "100,000 values": b"[" + b"1," * (NODES_MAX - 2) + b"1]",
    "commas in a string": b'"' + b"," * 200_000 + b'"',
    "many shallow objects": b"[" + b'{"a":1},' * 1000 + b"{}]",
    "a pair of surrogates": b'"\\ud83d\\ude00"',
    "an escaped zero": b'"\\u0000"',
    "4300 digits": b"9" * 4300,
    "a number below all doubles": b"1e-400",
    "a scalar": b"null",
    "as large as allowed": b'"' + b"x" * (PAYLOAD_MAX - 2) + b'"',
}


@pytest.mark.parametrize("name", BAD)
def test_unsound_json_is_refused_in_a_sentence(name: str) -> None:
    # Given JSON that some reader would choke on
    raw, expected = BAD[name]

    # When it comes to the door, then it is refused, with one sentence that says why
    with pytest.raises(InvalidInput) as refusal:
        check(raw)
    assert expected in str(refusal.value)
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", GOOD)
def test_sound_json_is_accepted(name: str) -> None:
    check(GOOD[name])


def test_too_much_is_refused_with_the_numbers() -> None:
    with pytest.raises(TooLarge, match="1048577 bytes"):
        check(b'"' + b"x" * (PAYLOAD_MAX - 1) + b'"')
    with pytest.raises(TooLarge, match="at most 1048576"):
        encode("x" * PAYLOAD_MAX)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}",:\\ud80012eE+-.ntrfalse ', max_size=60).map(str.encode))
def test_check_accepts_only_what_the_standard_library_reads(raw: bytes) -> None:
    # Given any bytes at all, When they are accepted
    try:
        check(raw)
    except InvalidInput:
        return

    # Then a strict reader takes them, and finds nothing but finite numbers
    def refuse(word: str) -> Any:
        raise AssertionError(word)

    json.loads(raw, parse_constant=refuse, parse_float=lambda text: math.isfinite(float(text)) or refuse(text))


documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(documents)
def test_what_is_encoded_is_accepted_and_reads_back_the_same(value: object) -> None:
    raw = encode(value)
    check(raw)
    assert json.loads(raw) == value


@dataclass
class Point:
    x: float


class Node(msgspec.Struct):
    points: list[Point]


nested: list[Any] = []
nested.append(nested)
UNFIT = {
    "NaN": (float("nan"), "The value is nan"),
    "infinity inside": ({"a": [1, {"b": float("inf")}]}, "$.a[1].b is inf"),
    "minus infinity in a flat dict": ({"a": float("-inf")}, "$.a is -inf"),
    "NaN in a tuple": ((1, float("nan")), "$[1] is nan"),
    "NaN in a dataclass": ({"p": Point(float("nan"))}, "$.p.x is nan"),
    "NaN in a Struct": (Node([Point(1), Point(float("nan"))]), "$.points[1].x is nan"),
    "an integer key": ({"a": {1: 2}}, "$.a has the key 1"),
    "a key at the top": ({1: 2}, "The value has the key 1"),
    "a tuple as key": ({(1, 2): 3}, "cannot become JSON"),
    "an object": ({"a": {"b": [object()]}}, "$.a.b[0] cannot become JSON"),
    "a function": ({"callback": print}, "$.callback cannot become JSON"),
    "a lone surrogate": ({"name": ["\ud800"]}, "$.name[0] cannot become JSON"),
    "too long a number": (10**5000, "cannot become JSON"),
    "itself": (nested, "contains itself"),
    "too deep": (json.loads("[" * DEEP + "]" * DEEP), "deeper than 32"),
    "too many": ([0] * (NODES_MAX + 1), "more than 100000 values"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_json_cannot_hold_is_refused_with_its_place(name: str) -> None:
    value, expected = UNFIT[name]
    with pytest.raises(InvalidInput) as refusal:
        encode(value)
    assert expected in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_a_float_key_that_no_reader_can_turn_back_is_refused_even_with_hints() -> None:
    assert encode({1: 2, 2.5: 3}, typed_keys=True) == b'{"1":2,"2.5":3}'
    with pytest.raises(InvalidInput, match="the key nan"):
        encode({math.nan: 1}, typed_keys=True)


def test_rich_values_become_json() -> None:
    value = {"at": datetime(2030, 1, 1, tzinfo=UTC), "point": Point(1.5), "raw": b"ab", "set": {1}, "none": None}
    assert json.loads(encode(value)) == {
        "at": "2030-01-01T00:00:00Z",
        "point": {"x": 1.5},
        "raw": "YWI=",
        "set": [1],
        "none": None,
    }
