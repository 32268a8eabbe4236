"""Keywords count in the drafts of JSON Schema that have them: decoding and the check at the end agree under each."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from sglang.srt.errors import GrammarError
from sglang.srt.json_drafts import ANY, NEWEST, draft_of
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.scheduler.grammar.schema.drafts import counts
from sglang.srt.scheduler.grammar.schema.keywords import CONSTRAINING
from sglang.srt.server.schema_check_work import check, validator_of
from tests.scheduler.test_backends import backend_of, both, ends_after

OLD = "http://json-schema.org/draft-0{}/schema#"
URIS = {d: OLD.format(d) for d in (3, 4, 6, 7)} | {
    d: f"https://json-schema.org/draft/{d}/schema" for d in ("2019-09", "2020-12")
}
DRAFTS = {draft_of({"$schema": uri}): uri for uri in URIS.values()}
VALUES = [
    None,
    0,
    1,
    2,
    1.5,
    "a",
    [],
    [1],
    ["a"],
    [1, "a"],
    [1, 2, 3],
    [1, 1],
    {},
    {"a": 1},
    {"a": "x"},
    {"a": 1, "b": 2},
    {"b": 1},
]
INTEGER, STRING = {"type": "integer"}, {"type": "string"}
ABOUT_OBJECTS = {"type": "object", "properties": {"a": {}, "b": {}}}
SCHEMAS: dict[str, dict[str, Any]] = {
    "prefixItems": {"type": "array", "prefixItems": [INTEGER], "items": STRING},
    "items as a list": {"type": "array", "items": [INTEGER], "additionalItems": False},
    "items as a list, and others": {"type": "array", "items": [INTEGER], "additionalItems": STRING},
    "dependentRequired": {**ABOUT_OBJECTS, "dependentRequired": {"a": ["b"]}},
    "dependencies": {**ABOUT_OBJECTS, "dependencies": {"a": ["b"]}},
    "a limit excluded by a flag": {"type": "number", "minimum": 1, "exclusiveMinimum": True},
    "an excluded limit": {"type": "number", "exclusiveMinimum": 1},
    "an excluded limit beside another": {"type": "integer", "maximum": 2, "exclusiveMaximum": 2},
    "const": {"const": 1},
    "contains": {"type": "array", "contains": {"enum": [1]}},
    "minContains": {"type": "array", "items": INTEGER, "contains": INTEGER, "minContains": 2},
    "no minContains": {"type": "array", "contains": STRING, "minContains": 0},
    "unevaluatedProperties": {"type": "object", "properties": {"a": INTEGER}, "unevaluatedProperties": False},
    "unevaluatedItems": {"type": "array", "items": [INTEGER], "unevaluatedItems": False},
    "propertyNames": {"type": "object", "propertyNames": {"enum": ["a"]}},
    "beside a reference": {"$ref": "#/definitions/n", "minimum": 2, "definitions": {"n": INTEGER}},
    "in $defs": {"$ref": "#/$defs/n", "$defs": {"n": INTEGER}},
    "a condition": {"type": "integer", "if": {"minimum": 1}, "then": {"minimum": 2}},
    "id and $id": {
        "type": "object",
        "properties": {"a": {"$ref": "x"}, "b": {}},
        "definitions": {"n": {"id": "x", "type": "integer"}, "m": {"$id": "x", "type": "string"}},
    },
    "an anchor": {"type": "object", "properties": {"a": {"$ref": "#x"}}, "definitions": {"n": {"$anchor": "x", **INTEGER}}},
    "an old anchor": {"type": "object", "properties": {"a": {"$ref": "#x"}}, "definitions": {"n": {"$id": "#x", **INTEGER}}},
    "an older anchor": {"type": "object", "properties": {"a": {"$ref": "#x"}}, "definitions": {"n": {"id": "#x", **INTEGER}}},
    "a required property": {"type": "object", "properties": {"a": {"type": "integer", "required": True}, "b": {}}},
    "extends": {"extends": INTEGER},
    "divisibleBy": {"type": "integer", "divisibleBy": 2},
    "any": {"type": "any"},
    "types that are schemas": {"type": ["integer", {"type": "string"}]},
    "minProperties": {**ABOUT_OBJECTS, "minProperties": 2},
    "allOf": {"allOf": [INTEGER, {"minimum": 1}]},
    "patterns that a name matches together": {"type": "object", "patternProperties": {"^a": INTEGER, "a$": {"maximum": 0}}},
    "a pattern beside a listed name": {**ABOUT_OBJECTS, "properties": {"a": INTEGER}, "patternProperties": {"^(a|b)$": {"maximum": 0}}},
    "a dependency that is a schema": {**ABOUT_OBJECTS, "dependencies": {"a": {"properties": {"b": STRING}}}},
}  # fmt: skip


@both
@pytest.mark.parametrize("draft", [ANY, *DRAFTS])
@pytest.mark.parametrize("is_inside", [False, True])
def test_decoding_agrees_with_the_check(name: str, draft: int, is_inside: bool) -> None:
    num_taken = 0
    for case, schema in SCHEMAS.items():
        schema = {"$schema": DRAFTS[draft], **schema} if draft in DRAFTS else schema
        if is_inside and "$ref" in str(schema):
            continue
        whole = {"type": "object", "properties": {"v": schema}, "required": ["v"]} if is_inside else schema
        try:
            state = backend_of(name).compile("json_schema", with_style(json.dumps(whole), JsonStyle(check=True)))
        except GrammarError:
            continue
        for value in [{"v": value} for value in VALUES] if is_inside else VALUES:
            verdict, taken = check(whole, json.dumps(value)), ends_after(state.copy(), json.dumps(value))
            assert not verdict.is_final, (case, verdict)
            assert not taken or verdict.error is None or state.unenforced, (case, value, verdict)
            num_taken += taken and verdict.error is None
    assert num_taken > (40 if name == "llguidance" else 20)


@pytest.mark.parametrize("draft", DRAFTS)
def test_what_counts_is_what_the_drafts_say(draft: int) -> None:
    kinds = jsonschema.validators
    known = set(kinds.validator_for({"$schema": DRAFTS[draft]}).VALIDATORS)
    beside = {"then", "else", "minContains", "maxContains", "required", "exclusiveMinimum", "exclusiveMaximum", "nullable"}
    mine = {key for key in CONSTRAINING if counts(key, draft)}
    assert mine - beside == known - beside
    assert all(counts(key, ANY) for key in CONSTRAINING)


VALID: list[tuple[int, dict[str, Any], str, str]] = [
    (7, SCHEMAS["prefixItems"], '["a","b"]', "[1]"),
    (2019, {"type": "array", "prefixItems": [INTEGER], "items": [STRING]}, '["a",1]', "[1]"),
    (4, {"type": "array", "items": [STRING], "additionalItems": False}, '["a"]', '["a","b"]'),
    (7, {"$ref": "#/definitions/n", "minimum": 2, "definitions": {"n": INTEGER}}, "1", '"a"'),
    (2019, {"$ref": "#/definitions/n", "minimum": 2, "definitions": {"n": INTEGER}}, "2", "1"),
    (4, {"type": "integer", "minimum": 1, "exclusiveMinimum": True}, "2", "1"),
    (7, {**ABOUT_OBJECTS, "dependentRequired": {"a": ["b"]}}, '{"a":1}', "[]"),
    (2020, {**ABOUT_OBJECTS, "dependencies": {"a": ["b"]}}, '{"a":1}', "[]"),
    (3, SCHEMAS["a required property"], '{"a":1}', '{"b":1}'),
    (4, {"type": "integer", "const": 3, "if": {"minimum": 1}, "then": {"minimum": 7}}, "2", '"a"'),
    (4, {"id": "http://h/s", "$ref": "#/definitions/n", "definitions": {"n": {"id": "http://h/n", **INTEGER}}}, "2", '"a"'),
]


@pytest.mark.parametrize(("draft", "schema", "yes", "no"), VALID)
def test_values_of_a_draft(draft: int, schema: dict[str, Any], yes: str, no: str) -> None:
    whole = {"$schema": DRAFTS[draft], **schema}
    state = backend_of("llguidance").compile("json_schema", json.dumps(whole))
    assert check(whole, yes).error is None and check(whole, no).error is not None
    assert ends_after(state.copy(), yes) and not ends_after(state, no)


def test_a_list_of_items_is_no_schema_since_2020() -> None:
    schema = {"$schema": DRAFTS[NEWEST], "type": "array", "items": [INTEGER]}
    with pytest.raises(GrammarError, match="#/items must be a schema; a list of them stands at prefixItems"):
        backend_of("llguidance").compile("json_schema", with_style(json.dumps(schema), JsonStyle(check=True)))


@pytest.mark.parametrize(
    ("uri", "draft"),
    [
        ("http://json-schema.org/draft-07/schema", 7),
        ("https://json-schema.org/draft-07/schema#", 7),
        ("http://json-schema.org/draft-05/schema#", 4),
        ("http://json-schema.org/draft-04/hyper-schema#", 4),
        ("https://json-schema.org/draft/2019-09/schema#", 2019),
        ("http://json-schema.org/schema#", ANY),
        ("https://example.com/draft-07/own.json", ANY),
    ],
)
def test_drafts_by_the_names_that_people_write(uri: str, draft: int) -> None:
    assert draft_of({"$schema": uri}) == draft and draft_of({"$schema": uri}, 6) == (6 if draft == ANY else draft)
    limit = {"$schema": uri, "type": "integer", "minimum": 1, "exclusiveMinimum": True}
    if draft in (4, ANY):
        assert check(limit, "2").error is None and check(limit, "1").error is not None
    inner = {"properties": {"v": {"$schema": uri, "items": [INTEGER]}}}
    assert check(inner, '{"v": [1]}').error is None and check(inner, '{"v": ["a"]}').error is not None
    assert validator_of(draft) is not None
