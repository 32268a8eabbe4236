"""Schemas are built anew out of checked parts, wherever references lead."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.engines.keyword_arguments import keyword_grammar
from sglang.srt.scheduler.grammar.engines.lark_schemas import prepare_lark
from sglang.srt.scheduler.grammar.engines.llguidance_backend import FOLLOWED
from sglang.srt.scheduler.grammar.schema.json_schema import prepare_value
from tests.scheduler.test_backends import backend_of, ends_after

NULL = {"type": "null"}
ODD = {"a b": {"c~/d": [False, {"%": NULL}]}}
BAD = {"type": "integer", "minimum": 2**80, "maximum": 2**80}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/odd/a%20b/c~0~1d/1/%25", "odd": ODD},
        {"$ref": "#n", "x": 1, "$defs": {"m": {"$anchor": "n", **NULL}}},
        {"$ref": "#n", "definitions": {"m": {"$id": "#n", **NULL}}},
        {"$id": "http://h/root.json", "$ref": "part.json", "$defs": {"m": {"$id": "part.json", **NULL}}},
        {"$id": "http://h/root.json", "$ref": "part.json#/y", "$defs": {"m": {"$id": "part.json", "y": NULL}}},
        {"$id": "http://h/root.json", "$ref": "http://h/root.json#/x/0", "x": [NULL]},
        {"$id": "urn:a:b", "$ref": "#/x", "x": NULL},
        {"$ref": "#/x", "x": {"$ref": "#/y/0/z"}, "y": [{"z": {"$ref": "#/w"}}], "w": NULL},
        {"anyOf": [{"$ref": "#/anyOf/1"}, NULL]},
    ],
)
def test_references_lead_where_they_say(schema: Any) -> None:
    state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
    assert ends_after(state.copy(), "null") and not state.accept(ord("1"))


@pytest.mark.parametrize(
    "ref", ["#/x", "#x", "other.json", "http://a/b#/c", "#/odd/1", "#/odd/a b/c/2", "http://[", "#/%ff", 5, None, {}]
)
def test_references_that_lead_nowhere_are_refused_by_path(ref: Any) -> None:
    with pytest.raises(GrammarError, match="at #/items/[$]ref leads to nothing"):
        prepare_value({"type": "array", "items": {"$ref": ref}, "odd": {"a b": [1]}}, FOLLOWED)


@pytest.mark.parametrize(
    "schema",
    [
        {"foo": BAD, "$ref": "#/foo"},
        {"foo": {"bar": [1, {"baz": BAD}]}, "items": {"$ref": "#/foo/bar/1/baz"}},
        {"$ref": "#x", "$defs": {"a": {"$anchor": "x", "properties": {"p": BAD}}}},
        {"$ref": "#/foo", "foo": {"$ref": "#/bar"}, "bar": {"enum": [2**70]}},
        {"$ref": "#/foo", "foo": {"items": {"uniqueItems": True}}},
        {"$ref": "#/foo", "foo": 7},
        {"$ref": "#/const", "const": BAD},
        {"type": "array", "minItems": 2**40},
        {"type": "string", "maxLength": -1},
        {"type": "string", "minLength": True},
        {"type": "integer", "multipleOf": 0},
        {"type": "integer", "multipleOf": "3"},
        {"type": "integer", "minimum": float("inf")},
    ],
)
def test_no_part_is_reached_unchecked(schema: Any) -> None:
    """Neither by itself, nor in a tag, nor as a keyword argument, nor in Lark."""
    with pytest.raises(GrammarError, match="json_schema"):
        prepare_value(schema, FOLLOWED)
    with pytest.raises(GrammarError):
        keyword_grammar({"properties": {"a": schema}}, lambda value: prepare_value(value, FOLLOWED))
    text = json.dumps(schema)
    for lark in (f"start: %json {text}", f'start: "a" | b\nb: %json\n\t{text} "c"', f"// %json {{}}\nstart: %json{text}"):
        with pytest.raises(GrammarError, match="ebnf"):
            prepare_lark(lark, lambda value: prepare_value(value, FOLLOWED))


def test_what_nothing_leads_to_is_left_out() -> None:
    schema = {"type": "string", "x": BAD, "$defs": {"unused": BAD}, "description": "d", "default": BAD}
    assert prepare_value(schema, FOLLOWED) == {"type": "string"}


def test_a_schema_chooses_its_white_space_and_nothing_else() -> None:
    chosen = prepare_value({"type": "null", "x-guidance": {"whitespace_flexible": False}}, FOLLOWED)
    assert chosen["x-guidance"] == {"whitespace_flexible": False}
    for value in ({"lenient": True}, {"whitespace_flexible": 1}, [], {"whitespace_pattern": ["x"]}):
        with pytest.raises(GrammarError, match="x-guidance"):
            prepare_value({"type": "null", "x-guidance": value}, FOLLOWED)


def test_long_chains_and_many_schemas_end() -> None:
    chain: Any = {"$ref": "#/x0", **{f"x{i}": {"$ref": f"#/x{i + 1}"} for i in range(3000)}, "x3000": NULL}
    assert len(prepare_value(chain, FOLLOWED)["$defs"]) == 3001
    with pytest.raises(GrammarError, match="more than"):
        prepare_value({"anyOf": [NULL] * 60_000}, FOLLOWED)


WORDS = sorted(
    FOLLOWED | {"$ref", "$id", "$anchor", "$defs", "x", "dependentRequired", "propertyNames", "x-guidance", "if", "contains"}
)
ANY_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-2, 3), st.sampled_from([1e300, "#", "#/x", "#/x/0", "a", "string", "object"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)),
    max_leaves=14,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(WORDS), ANY_JSON, max_size=5))
def test_any_json_is_a_checked_schema_or_refused(schema: dict[str, Any]) -> None:
    try:
        ready = prepare_value(schema, FOLLOWED)
    except GrammarError:
        return
    _check(ready, FOLLOWED | {"$defs", "$schema", "x-guidance"})


def _check(node: Any, keys: frozenset[str]) -> None:
    """Nothing that could be taken for a schema has other keywords."""
    if not isinstance(node, dict):
        return
    assert node.keys() <= keys
    for key, value in node.items():
        inner = list(value.values()) if key in ("properties", "patternProperties", "$defs") and isinstance(value, dict) else []
        inner += value if key in ("anyOf", "oneOf", "allOf", "prefixItems") and isinstance(value, list) else []
        inner += [value] if key in ("items", "additionalProperties") else []
        for child in inner:
            _check(child, FOLLOWED)
        if key == "$ref":
            assert value == "#" or value.startswith("#/$defs/")
