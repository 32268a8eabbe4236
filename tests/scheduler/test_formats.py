"""Formats mean what their documents say, with both engines, and what has no end by itself gets one."""

from __future__ import annotations

import json
from typing import Any, Literal, cast

import jsonschema
import pytest

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from sglang.srt.scheduler.grammar.regex.finite_patterns import matched_words
from sglang.srt.scheduler.grammar.schema.formats import FORMATS
from tests.scheduler.test_backends import backend_of, both, ends_after
from tests.scheduler.test_grammar import allowed_by
from tests.scheduler.toy import EOS, VOCABULARY

FACTS: dict[str, tuple[list[str], list[str]]] = {
    "date": (
        ["2024-02-29", "2000-02-29", "0004-02-29", "2023-02-28", "1999-12-31", "0001-01-01"],
        ["2023-02-29", "1900-02-29", "2100-02-29", "0000-01-01", "0000-02-29", "2024-04-31", "2024-00-10", "2024-13-01", "24-01-01"],
    ),
    "time": (
        ["00:00:00Z", "23:59:59.5+05:30", "12:30:45-00:00"],
        ["12:00:60Z", "23:59:60Z", "24:00:00Z", "12:60:00Z", "12:00Z", "12:00:00", "12:00:00+24:00"],
    ),
    "date-time": (
        ["2024-02-29T23:59:59Z", "1985-04-12T23:20:50.52Z"],
        ["2023-02-29T00:00:00Z", "2024-01-01T00:00:60Z", "2024-01-01 00:00:00Z", "0000-01-01T00:00:00Z"],
    ),
    "duration": (["P1Y2M3D", "PT36H", "P4W", "P1DT12H", "PT0S"], ["P", "PT", "1D", "P1YT", "P1D2H", "P1Y3W", "P1S"]),
    "email": (["joe@example.com", "a.b+c@d-e.org", "x@[127.0.0.1]"], ["joe", "@b.c", "a@", ".a@b.c", "a..b@c.d", "a@-b.c"]),
    "hostname": (["example.com", "a", "xn-1.b"], ["-a.b", "a-.b", "a..b", "a_b", ".a", "a" * 64]),
    "ipv4": (["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4", "1.2.3.4.5"]),
    "ipv6": (["::", "::1", "1::", "1:2:3:4:5:6:7:8", "2001:db8::ff00:42:8329"], ["1", ":::", "1::2::3", "1:2:3:4:5:6:7", "1:2:3:4:5:6:7:8:9", "12345::"]),
    "uuid": (["2eb8aa08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380", "2eb8aa08-aa98-11ea-b4aa-73b441d1638g"]),
    "uri": (["http://example.com/a/b?c=d#e", "urn:isbn:1", "mailto:a@b.c"], ["/a/b", "//a.b", "a b:c", "http://a.b/{c}", ":a"]),
    "json-pointer": (["", "/a/0", "//"], ["a", "/~", "#"]),
    "regex": (["^a.b$", "x*"], ["(", "*", "a**"]),
}  # fmt: skip
"""format: what is one, what is none"""


@both
@pytest.mark.parametrize("known", FACTS)
def test_formats_are_exact(name: str, known: str) -> None:
    state = backend_of(name).compile("json_schema", json.dumps({"type": "string", "format": known}))
    yes, no = FACTS[known]
    for text in yes:
        assert ends_after(state.copy(), json.dumps(text)), text
    for text in no:
        assert not ends_after(state.copy(), json.dumps(text)), text


@both
@pytest.mark.parametrize("year", [1, 4, 99, 100, 400, 1600, 1700, 1900, 1996, 2000, 2100, 2400, 9996, 9999])
def test_leap_years(name: str, year: int) -> None:
    state = backend_of(name).compile("json_schema", '{"type":"string","format":"date"}')
    text = f"{year:04d}-02-29"
    is_date = jsonschema.Draft202012Validator.FORMAT_CHECKER.conforms(text, "date")
    assert ends_after(state, json.dumps(text)) == is_date == (year % 4 == 0 and (year % 100 != 0 or year % 400 == 0))


def test_formats_go_with_patterns_and_lengths() -> None:
    schema = {"type": "string", "format": "date", "pattern": "^20", "allOf": [{"pattern": "5$"}]}
    state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
    assert ends_after(state.copy(), '"2024-06-15"')
    for text in ('"1924-06-15"', '"2024-06-14"', '"2024-06-35"'):
        assert not ends_after(state.copy(), text)
    with pytest.raises(GrammarError, match="#/format: not supported beside"):
        backend_of("xgrammar").compile("json_schema", '{"type":"string","format":"date","maxLength":12}')


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("^foo$", ["foo"]),
        (r"\A(?:a|bc)x?\Z", ["a", "ax", "bc", "bcx"]),
        ("^[a-c]{0,1}$", ["", "a", "b", "c"]),
        ("^a|b$", None),
        ("foo", None),
        ("^foo", None),
        ("^a*$", None),
        ("(?i)^a$", None),
        (r"^\d$", None),
        ("^[^a]$", None),
        ("^[a-z]{2}$", None),
        ("^(", None),
    ],
)
def test_patterns_of_a_few_words(pattern: str, words: list[str] | None) -> None:
    assert matched_words(pattern) == words


# --- bounds -----------------------------------------------------------------------------------------------------------------

ENDLESS: list[dict[str, Any]] = [
    {"type": "integer"},
    {"type": "integer", "minimum": 3},
    {"type": "number"},
    {"type": "number", "maximum": 7},
    {"type": "number", "exclusiveMinimum": 0.25},
    *(
        {"type": "string", "format": known}
        for known in ("time", "date-time", "duration", "email", "uri", "uri-reference", "json-pointer")
    ),
]
MOST = 300
_made: dict[tuple[str, bool], GrammarBackend] = {}


def engine(name: str, bounded: bool) -> GrammarBackend:
    made = create_backend(VOCABULARY, GrammarOptions(backend=cast(Literal["llguidance", "xgrammar"], name), bounded=bounded))
    assert made is not None
    return _made.setdefault((name, bounded), made)


def stubborn(backend: GrammarBackend, schema: dict[str, Any]) -> int:
    """How many bytes an answer has whose writer repeats itself, and never ends it, as long as something else is allowed."""
    state, last = backend.compile("json_schema", json.dumps(schema)).copy(), ord("1")
    for length in range(MOST):
        allowed = allowed_by(state)
        assert allowed, "a dead end"
        if state.is_finished or allowed == {EOS}:
            return length
        more = sorted(allowed - {EOS, ord('"')}) or [ord('"')]
        last = next((byte for byte in (last, ord("."), ord("a"), ord("1")) if byte in more), more[-1])
        assert state.accept(last)
    return MOST


@both
@pytest.mark.parametrize("schema", ENDLESS, ids=json.dumps)
def test_what_has_no_end_by_itself_gets_one(name: str, schema: dict[str, Any]) -> None:
    assert stubborn(engine(name, True), schema) < MOST
    if name == "llguidance" or schema["type"] == "string":  # xgrammar writes numbers between limits its own way
        assert stubborn(engine(name, False), schema) == MOST


OPEN: list[tuple[Any, str]] = [
    ({"type": "object"}, '{"a": '),
    ({"type": "object"}, '{"a": [{"b": '),
    ({}, ""),
    ({}, '[1, {"a": '),
    ({"type": "array"}, "["),
    ({"type": ["array", "null"]}, "[[["),
    ({"type": "array", "items": True}, "[true, "),
    ({"type": "object", "additionalProperties": True}, '{"a": {"b": '),
    ({"type": "object", "properties": {"a": {}}}, '{"a": '),
    ({"type": "object", "properties": {"a": {"type": "array"}, "b": {"type": "object"}}}, '{"a": ['),
    ({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "object"}}}, '{"a": {"c": '),
    ({"anyOf": [{"type": "object"}, {"type": "null"}]}, '{"a": '),
    ({"type": "object", "additionalProperties": {"type": "array", "items": {"anyOf": [{}, {"type": "null"}]}}}, '{"a": ['),
]
FREE: list[tuple[Any, str]] = [
    ({"type": "object", "patternProperties": {"^x": {}}}, '{"x1": '),
    ({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {}}, '{"b": '),
    ({"type": "object", "minProperties": 1}, '{"b": '),
    ({"type": "array", "prefixItems": [{}, True]}, "["),
    ({"type": "array", "prefixItems": [{"type": "null"}]}, "[null, "),
    ({"properties": {"a": {"$ref": "#"}}, "additionalProperties": True}, '{"a": {"b": [{"a": '),
]
"""what one engine follows"""


@pytest.mark.parametrize(
    ("name", "schema", "before"),
    [*(("llguidance", *one) for one in (*OPEN, *FREE)), *(("xgrammar", *one) for one in OPEN)],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_numbers_of_which_a_schema_says_nothing_end(name: str, schema: Any, before: str) -> None:
    """Wherever anything may stand: in objects of any properties, in lists of anything, at any depth."""
    for number in ("1", "1.5"):
        for bounded in (True, False):
            state = engine(name, bounded).compile("json_schema", json.dumps(schema)).copy()
            assert state.accept_all(list((before + number).encode())), "a value is still anything"
            num_digits = 0
            while num_digits < 60 and state.accept(ord("3")):
                num_digits += 1
            assert num_digits < 20 if bounded else num_digits == 60
            for text in ('"1"', "true", "null", "[[1]]", '{"b": [2.5]}', "-3"):
                again = engine(name, bounded).compile("json_schema", json.dumps(schema)).copy()
                assert again.accept_all(list((before + text).encode())), text


@both
@pytest.mark.parametrize("begin", ['{"a": ', "[", '[{"b": '])
@pytest.mark.parametrize(
    "schema", [{}, {"type": "object"}, {"type": "array"}, {"type": "object", "additionalProperties": True}]
)
def test_nesting_of_which_a_schema_says_nothing_ends(name: str, schema: Any, begin: str) -> None:
    levels = {}
    for bounded in (True, False):
        state = engine(name, bounded).compile("json_schema", json.dumps(schema)).copy()
        levels[bounded] = 0
        while levels[bounded] < 40 and all(state.accept(byte) for byte in begin.encode()):
            levels[bounded] += begin.count("[") + begin.count("{")
    if levels[False]:  # it may begin so
        assert 8 <= levels[True] <= 10 and levels[False] == 40


@pytest.mark.parametrize("schema", [{}, {"type": "object"}, {"type": "object", "additionalProperties": True}])
def test_names_of_which_a_schema_says_nothing_end(schema: Any) -> None:
    for bounded in (True, False):
        state = engine("llguidance", bounded).compile("json_schema", json.dumps(schema)).copy()
        assert state.accept_all(list(b'{"a": 1, "' + b"x" * 64))
        assert state.accept(ord("x")) is not bounded
        assert ends_after(
            engine("llguidance", bounded).compile("json_schema", json.dumps(schema)).copy(),
            '{"\u00e4 b_1": {"": 1}}'.encode().decode("unicode_escape"),
        )


def test_what_other_schemas_speak_of_stays_as_it_was() -> None:
    schema = {
        "allOf": [{"properties": {"a": {"type": "array"}}}, {"properties": {"a": {"minItems": 1}}}],
        "properties": {"b": {"$ref": "#/$defs/x", "maxProperties": 1}, "c": {"$ref": "#/$defs/x"}},
        "$defs": {"x": {"type": "object", "additionalProperties": True}},
    }
    state = engine("llguidance", True).compile("json_schema", json.dumps(schema))
    assert ends_after(state.copy(), '{"a": [[1]], "b": {"q": {"r": 1}}, "c": {}}')


@both
@pytest.mark.parametrize(
    ("schema", "yes"),
    [
        ({"type": "integer"}, ["999999999999999", "-999999999999999", "0"]),
        ({"type": "number"}, ["0.000001", "-123456789012345.5"]),
        ({"type": "integer", "minimum": 10**15}, ["1000000000000000", "9007199254740991"]),
        ({"type": "number", "minimum": 10**16 - 10**15}, ["9000000000000001"]),
    ],
)
def test_bounds_leave_what_people_write(name: str, schema: dict[str, Any], yes: list[str]) -> None:
    state = backend_of(name).compile("json_schema", json.dumps(schema))
    for text in yes:
        assert ends_after(state.copy(), text), text


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number", "minimum": 0.0000001, "maximum": 0.0000005}, "0.0000003"),
        ({"type": "number", "anyOf": [{"const": 0.1234567}, {"minimum": 5}]}, "0.1234567"),
        ({"type": "integer", "allOf": [{"minimum": 2 * 10**15}]}, "2000000000000000"),
        ({"type": "number", "allOf": [{"multipleOf": 5000}]}, "15000"),
    ],
)
def test_no_bound_contradicts_the_schema(schema: dict[str, Any], text: str) -> None:
    assert ends_after(backend_of("llguidance").compile("json_schema", json.dumps(schema)), text)


def test_the_default_covers_all_formats_that_are_checked_by_default() -> None:
    checked = jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers.keys()
    assert checked - {"color", "uri-template"} <= FORMATS
