"""The smallest part of a schema that an engine does not follow is left to the check at the end; decoding follows the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang.srt.errors import GrammarError
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from tests.scheduler.test_backends import backend_of, both, ends_after

INTEGER, STRING, NULL = {"type": "integer"}, {"type": "string"}, {"type": "null"}


def compiled(name: str, schema: Any) -> GrammarState:
    return backend_of(name).compile("json_schema", with_style(json.dumps(schema), JsonStyle(check=True)))


def hold(state: GrammarState, yes: list[Any], no: list[Any]) -> None:
    for value in yes:
        assert ends_after(state.copy(), json.dumps(value, separators=(",", ":"))), value
    for value in no:
        assert not ends_after(state.copy(), json.dumps(value, separators=(",", ":"))), value


def shape(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


WHOLE: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "listed values within limits": ({"enum": [1, 2, 3, "x"], "minimum": 2}, [2, 3, "x"], [1]),
    "beside a type": ({"type": "integer", "enum": [1, 2, 3, "x"], "exclusiveMinimum": 2}, [3], [1, 2, "x"]),
    "a constant of a length": ({"const": "abc", "maxLength": 3, "minLength": 1}, ["abc"], ["ab"]),
    "lists of a length": ({"enum": [[], [1], [1, 2]], "maxItems": 1, "minItems": 1}, [[1]], [[], [1, 2]]),
    "typed further properties": (
        {**shape(a=INTEGER), "additionalProperties": STRING},
        [{"a": 1}, {}],
        [{"a": "x"}, {"b": 1}],
    ),
    "one of them required": (
        {**shape(a=INTEGER), "required": ["b"], "additionalProperties": STRING},
        [{"a": 1, "b": "x"}],
        [{"a": 1}, {"a": 1, "b": 1}],
    ),
    "a required property that is not listed": ({"type": "object", "required": ["b"]}, [{"b": 1}], [{}]),
    "a type beside a choice": (
        {"type": "object", "anyOf": [{**shape(a=INTEGER), "required": ["a"]}, {"properties": {"b": NULL}, "required": ["b"]}]},
        [{"a": 1}, {"b": None}],
        [{}, {"a": "x"}, 1],
    ),
}


@both
@pytest.mark.parametrize("case", WHOLE)
def test_nothing_is_left_out(name: str, case: str) -> None:
    schema, yes, no = WHOLE[case]
    state = compiled(name, schema)
    assert state.unenforced == ()
    hold(state, yes, no)


BROKEN = {"type": "string", "pattern": r"\p{Nothing}"}
PART: dict[str, tuple[Any, tuple[str, ...], list[Any], list[Any]]] = {
    "a number of many": ({"enum": [1, "a", 2**64, None, 0.1234567890123]}, ("#/enum/2", "#/enum/4"), [1, "a", None], ["b", 2, 2**64]),
    "one number": ({"type": "integer", "const": 2**64}, ("#/const",), [1], ["a"]),
    "one pattern of many": (
        shape(a={"type": "string", "pattern": "^a+$"}, b=BROKEN, c={"type": "string", "pattern": "^c$"}),
        ("#/properties/b/pattern",),
        [{"a": "aa", "b": "x", "c": "c"}],
        [{"a": "b"}, {"c": "d"}, {"b": 1}],
    ),
    "two patterns of many": (
        shape(**{f"p{i}": BROKEN if i in (3, 7) else {"type": "string", "pattern": f"^{i}$"} for i in range(9)}),
        ("#/properties/p3/pattern", "#/properties/p7/pattern"),
        [{"p0": "0", "p3": "x", "p8": "8"}],
        [{"p0": "x"}, {"p8": "x"}, {"p7": 7}],
    ),
    "one count of two": (
        shape(a={"type": "object", "additionalProperties": NULL, "minProperties": 2}, b={"type": "object", "additionalProperties": NULL, "minProperties": 1}),
        ("#/properties/a/minProperties",),
        [{"a": {"x": None, "y": None}, "b": {"x": None}}],
        [{"a": {"x": 1}}, {"b": {}}, {"a": {"x": None}, "b": {"x": None}}],
    ),
    "an unknown type of pattern beside others": (
        {"type": "array", "items": {"type": "string", "minLength": 2, "pattern": "^(?!a)"}, "minItems": 1},
        ("#/items/pattern",),
        [["ab"]],
        [[], [1], ["a"]],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PART)
def test_the_smallest_part_is_left_out(case: str) -> None:
    schema, left, yes, no = PART[case]
    state = compiled("llguidance", schema)
    assert state.unenforced == left
    hold(state, yes, no)


def test_one_of_the_patterns_for_names() -> None:
    """Two that a name may match both, and that are too large to be told apart (regex/regions.py)."""
    names = {"^b": INTEGER, "^b{1,50}c": STRING, "^x": NULL}
    state = compiled(
        "llguidance", shape(a={"type": "object", "patternProperties": names}, b={"type": "object", "patternProperties": names})
    )
    assert state.unenforced == tuple(f"#/properties/{name}/patternProperties/^b{{1,50}}c" for name in "ab")
    hold(state, [{"a": {"b": 1, "x": None}}], [{"a": {"b": "s"}}, {"b": {"x": 1}}])


def test_names_of_a_pattern_that_is_left_out_are_not_forbidden() -> None:
    names = {"^b": INTEGER, "^(?=x)": NULL}
    state = compiled("llguidance", {"type": "object", "patternProperties": names, "additionalProperties": False})
    assert state.unenforced == ("#/patternProperties/^(?=x)",)
    hold(state, [{"b": 1, "x": None}, {"x": None}], [{"b": "s"}])


def test_control_characters_of_one_pattern() -> None:
    schema = shape(
        a={"type": "string", "pattern": r"^[\x00-\x1f]$"},
        b={"type": "string", "pattern": "^b$"},
        c={**shape(d=NULL), "additionalProperties": True},
    )
    state = compiled("llguidance", schema)
    assert state.unenforced == ("#/properties/a/pattern",)
    hold(state, [{"a": "x", "b": "b"}], [{"b": "c"}, {"a": 1}])


def test_by_xgrammar() -> None:
    pytest.importorskip("xgrammar")
    state = compiled("xgrammar", {"type": "array", "items": {"anyOf": [INTEGER, NULL], "minimum": 3}, "minItems": 1})
    assert state.unenforced == ("#/items/minimum",)
    hold(state, [[1], [None]], [[], ["a"]])
    state = compiled("xgrammar", {**shape(a={"type": "string", "pattern": "^(?=a)"}, b=INTEGER), "required": ["b"]})
    assert state.unenforced == ("#/properties/a/pattern",)
    hold(state, [{"a": "x", "b": 1}], [{"a": "x"}, {"a": 1, "b": 1}])


def test_what_is_strict_names_its_part() -> None:
    schema = {"anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {"a": shape(x=BROKEN), "b": shape(x=BROKEN)}}
    text = json.dumps(schema)
    loose = backend_of("llguidance").compile("json_schema", with_style(text, JsonStyle(check=True, parts={"#/$defs/a": False})))
    assert loose.unenforced == ("#/$defs/a/properties/x/pattern", "#/$defs/b/properties/x/pattern")
    parts = {"#/$defs/a": False, "#/$defs/b": True}
    with pytest.raises(GrammarError, match=r"json_schema: #/\$defs/b: regex parse error"):
        backend_of("llguidance").compile("json_schema", with_style(text, JsonStyle(check=True, parts=parts)))
