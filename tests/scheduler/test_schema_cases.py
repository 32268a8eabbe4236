"""Conditions, counts of properties and references with something beside them, followed while decoding: compared with `jsonschema`."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema
import pytest

from sglang.srt.errors import GrammarError
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.grammar.schema.rewriting.conditions import pattern_of_others
from tests.scheduler.test_backends import backend_of, ends_after

INTEGER, STRING = {"type": "integer"}, {"type": "string"}
KIND = {"enum": ["a", "b", "c"]}


def shape(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def is_kind(value: Any, *required: str) -> dict[str, Any]:
    return {"properties": {"k": {"const": value}}, "required": list(required)}


def needs(*names: str) -> dict[str, Any]:
    return {"required": list(names)}


OPEN = shape(k=KIND, x=INTEGER, y=INTEGER)
TOLD = shape(("k",), k=KIND, x=INTEGER, y=INTEGER)
ANY_TEXT = shape(("k",), k=STRING, x=INTEGER, y=INTEGER)
FOLLOWED: dict[str, dict[str, Any]] = {
    "a required kind": {**TOLD, "if": is_kind("a"), "then": needs("x"), "else": needs("y")},
    "a kind that may be missing": {**OPEN, "if": is_kind("a"), "then": needs("x"), "else": needs("y")},
    "a condition that wants it": {**OPEN, "if": is_kind("a", "k"), "then": needs("x"), "else": needs("y")},
    "no else": {**OPEN, "if": is_kind("a", "k"), "then": needs("x")},
    "no then": {**OPEN, "if": is_kind("a", "k"), "else": needs("x")},
    "nothing else": {**OPEN, "if": is_kind("a", "k"), "then": needs("x"), "else": False},
    "several": {**TOLD, "allOf": [{"if": is_kind("a"), "then": needs("x")}, {"if": is_kind("b"), "then": needs("y")}]},
    "several, and a choice": {**TOLD, "allOf": [{"if": is_kind("a"), "then": needs("x")}, needs("y")], "anyOf": [needs("x"), is_kind("b")]},
    "any text": {**ANY_TEXT, "allOf": [{"if": is_kind("a"), "then": needs("x")}, {"if": is_kind("ab"), "then": needs("y")}]},
    "a flag": {**shape(k={"type": "boolean"}, x=INTEGER, y=INTEGER), "if": is_kind(True, "k"), "then": needs("x")},
    "a kind behind a reference": {
        **shape(("k",), k={"$ref": "#/$defs/K"}, x=INTEGER, y=INTEGER), "if": is_kind("a"), "then": needs("x"), "$defs": {"K": KIND}
    },
    "a property that is there": {**OPEN, "if": needs("x"), "then": needs("y")},
    "or is not": {**OPEN, "if": {"not": needs("x")}, "then": needs("y")},
    "two properties": {
        **shape(k=KIND, x={"enum": [1, 2]}, y=INTEGER),
        "if": {"properties": {"k": {"enum": ["a", "b"]}, "x": {"const": 1}}, "required": ["k", "x"]},
        "then": needs("y"),
    },
    "either": {
        **shape(k=KIND, x={"enum": [1, 2]}, y=INTEGER),
        "if": {"anyOf": [is_kind("a", "k"), {"properties": {"x": {"const": 1}}, "required": ["x"]}]},
        "then": needs("y"),
    },
    "schemas that depend": {**OPEN, "dependentSchemas": {"x": needs("y"), "y": is_kind("a")}},
    "in draft 7": {**OPEN, "$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"x": is_kind("a", "k")}},
    "one of the properties": {**OPEN, "minProperties": 1},
    "two of them": {**OPEN, "minProperties": 2, "additionalProperties": False},
    "one beside a required one": {**TOLD, "minProperties": 2},
    "more than there are": {**TOLD, "minProperties": 1},
}  # fmt: skip
VALUES = {"k": [None, "a", "b", "c", "ab", "abc", "", True, False], "x": [None, 1, 2], "y": [None, 1, "s"]}


def compiled(schema: Any) -> GrammarState:
    return backend_of("llguidance").compile("json_schema", with_style(json.dumps(schema), JsonStyle(check=True)))


@pytest.mark.parametrize("case", FOLLOWED)
def test_cases_are_told_apart(case: str) -> None:
    schema = FOLLOWED[case]
    state = compiled(schema)
    assert state.unenforced == ()
    valid = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)(schema).is_valid
    num_valid = 0
    for values in itertools.product(*VALUES.values()):
        value = {name: one for name, one in zip(VALUES, values, strict=True) if one is not None}
        assert ends_after(state.copy(), json.dumps(value, separators=(",", ":"))) == valid(value), value
        num_valid += valid(value)
    assert num_valid > 3


def test_what_follows_may_list_more_properties() -> None:
    then, other = {"properties": {"w": INTEGER}, "required": ["w"]}, {"properties": {"h": INTEGER}, "required": ["h"]}
    state = compiled({**shape(("k",), k=KIND), "if": is_kind("a"), "then": then, "else": other})
    assert (
        state.unenforced == () and ends_after(state.copy(), '{"k":"a","w":1}') and ends_after(state.copy(), '{"k":"c","h":1}')
    )
    for text in ('{"k":"a","h":1}', '{"k":"b","w":1}', '{"k":"a"}', '{"k":"b","w":1,"h":"x"}'):
        assert not ends_after(state.copy(), text), text


@pytest.mark.parametrize(
    "schema",
    [
        {**OPEN, "if": {"properties": {"x": {"minimum": 3}}}, "then": needs("y")},
        {**OPEN, "if": {"properties": {"x": {"const": 3}}}, "then": needs("y")},
        {**OPEN, "if": {"minProperties": 2}, "then": needs("y")},
        {**shape(k={"type": "string", "maxLength": 3}, x=INTEGER), "if": is_kind("a"), "then": needs("x")},
        {"type": "object", "additionalProperties": INTEGER, "minProperties": 2},
    ],
)
def test_what_cannot_be_told_apart_is_left_to_a_check(schema: Any) -> None:
    assert compiled(schema).unenforced in (("#/if",), ("#/minProperties",))


@pytest.mark.parametrize("words", [["a"], ["a", "ab", "b"], ["", "x"], ["]", "^", "-", "\\", "[", "."], ["é", "日本"]])
def test_all_texts_but_these(words: list[str]) -> None:
    state = backend_of("llguidance").compile("regex", pattern_of_others(words))
    some = {
        "",
        "a",
        "b",
        "ab",
        "abc",
        "ba",
        "x",
        "xx",
        "\n",
        "日",
        "日本",
        "日本語",
        "é",
        ".",
        "]",
        "^^",
        "-",
        "\\",
        "[",
        "é\n",
    }
    for text in some | set(words):
        assert ends_after(state.copy(), text) == (text not in words), text


TREE = {"v": INTEGER, "next": {"$ref": "#/$defs/T", "required": ["v"]}}
RECURSIVE: dict[str, dict[str, Any]] = {
    "beside a reference": {"$ref": "#/$defs/T", "$defs": {"T": {**shape(**TREE), "additionalProperties": False}}},
    "in allOf": {
        "$ref": "#/$defs/T",
        "$defs": {"T": shape(v=INTEGER, next={"allOf": [{"$ref": "#/$defs/T"}, {"required": ["v"]}]})},
    },
    "with another property": {
        "$ref": "#/$defs/T",
        "$defs": {"T": shape(v=INTEGER, next={"allOf": [{"$ref": "#/$defs/T"}, {"properties": {"w": {"$ref": "#/$defs/T", "required": ["w"]}}}]})},
    },
    "two that lead to each other": {
        "$ref": "#/$defs/T",
        "$defs": {
            "T": shape(v=INTEGER, next={"$ref": "#/$defs/U", "minProperties": 1}),
            "U": shape(v=INTEGER, next={"$ref": "#/$defs/T", "required": ["v"]}),
        },
    },
}  # fmt: skip


@pytest.mark.parametrize("case", RECURSIVE)
def test_references_that_lead_back_with_something_beside_them(case: str) -> None:
    schema = RECURSIVE[case]
    state, num_valid = compiled(schema), 0
    assert state.unenforced == ()
    valid = jsonschema.Draft202012Validator(schema).is_valid
    inner: list[Any] = [{}, {"v": 1}, {"v": "x"}, {"w": {}}, {"w": {"w": {}}}, 1]
    for _ in range(2):
        inner += [{"next": value} for value in inner] + [{"v": 1, "next": value} for value in inner]
    for value in inner[:60]:
        taken = ends_after(state.copy(), json.dumps(value, separators=(",", ":")))
        assert not taken or valid(value), value
        if "w" not in str(value):  # objects are closed
            assert taken == valid(value), value
        num_valid += taken
    assert num_valid > 6


def test_a_definition_that_nothing_satisfies_is_no_choice() -> None:
    wrong = {"type": "object", "properties": {"x": {"allOf": [STRING, {"const": 3}]}}, "required": ["x"]}
    schema = {"anyOf": [{"$ref": "#/$defs/wrong"}, {"$ref": "#/$defs/n"}], "$defs": {"wrong": wrong, "n": INTEGER}}
    state = compiled(schema)
    assert state.unenforced == () and ends_after(state.copy(), "1") and not state.copy().accept_all(list(b"{"))
    with pytest.raises(GrammarError, match="Unsatisfiable"):
        compiled({"$ref": "#/$defs/wrong", "$defs": {"wrong": wrong}})


def test_choices_of_references_with_something_beside_them() -> None:
    value = {"minProperties": 1, "anyOf": [STRING, {"$ref": "#/$defs/R"}]}
    resource = {"type": "object", "additionalProperties": value}
    state = compiled({**resource, "$defs": {"R": resource}})
    assert state.unenforced == ()
    for text, is_right in (
        ('{"a":"x"}', True),
        ('{"a":{"b":"x"}}', True),
        ('{"a":{}}', False),
        ('{"a":{"b":{"c":"x"}}}', True),
    ):
        assert ends_after(state.copy(), text) == is_right


def test_patterns_that_cannot_be_joined_are_left_to_a_check() -> None:
    traits = {
        "type": "object",
        "patternProperties": {"^[a-z]+$": {"$ref": "#/$defs/T"}},
        "properties": {"main": {"$ref": "#/$defs/T", "required": ["v"]}},
    }
    schema = {"$ref": "#/$defs/T", "$defs": {"T": {"type": "object", "properties": {"v": INTEGER, "traits": traits}}}}
    state = compiled(schema)
    assert all("patternProperties" in path for path in state.unenforced)
    assert ends_after(state.copy(), '{"v":1,"traits":{"main":{"v":1}}}') and not ends_after(
        state.copy(), '{"traits":{"main":{}}}'
    )
