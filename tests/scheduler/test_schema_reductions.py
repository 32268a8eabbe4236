"""Schemas that type libraries and agent frameworks send: what is followed while decoding, and what is left to a check. Whatever is
generated without such a rest is valid under the schema as it was written."""

from __future__ import annotations

import enum
import json
import random
from typing import Annotated, Any, Literal

import jsonschema
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import GrammarError
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from tests.scheduler.test_backends import backend_of, both, ends_after, walk


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"
    GREEN = "green"


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int


class Owner(pydantic.BaseModel):
    pet: Cat | Dog = pydantic.Field(discriminator="kind")


class Branch(pydantic.BaseModel):
    node: Literal["branch"] = "branch"
    kids: list[Annotated[Branch | Leaf, pydantic.Field(discriminator="node")]]


class Leaf(pydantic.BaseModel):
    node: Literal["leaf"] = "leaf"
    value: int


def schema_of(kind: Any) -> dict[str, Any]:
    return pydantic.TypeAdapter(kind).json_schema()


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


CARD = {"card": {"type": "integer"}, "address": {"type": "string"}, "note": {"type": "string"}}
Case = tuple[dict[str, Any], list[Any], list[Any]]
"""a schema, values that may be generated, values that may not"""
FOLLOWED: dict[str, Case] = {
    "one and true": ({"oneOf": [{"const": 1}, {"const": True}]}, [1, True], [2, False]),
    "dict of an enum": (schema_of(dict[Colour, int]), [{"red": 1, "blue": 2}, {}], [{"pink": 1}]),
    "dict of a literal": (schema_of(dict[Literal["a", "b"], int]), [{"a": 1}], [{"c": 1}]),
    "set of an enum": (schema_of(set[Colour]), [["blue", "red"], ["green"], []], [["red", "red"]]),
    "set of booleans": (schema_of(set[bool]), [[True, False]], [[True, True]]),
    "frozen set": (schema_of(frozenset[Literal[1, 2]]), [[2, 1]], [[1, 1]]),
    "few unique items": (
        {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "minItems": 2, "maxItems": 2},
        [["c", "a"]],
        [["a"], ["a", "a"], ["a", "b", "c"]],
    ),
    "unique digits": (
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 3}, "uniqueItems": True, "minItems": 3, "maxItems": 4},
        [[3, 0, 2], [0, 1, 2, 3]],
        [[1, 1, 2], [0, 1], [4, 1, 2], [0, 1.5, 2]],
    ),
    "discriminator": (schema_of(Owner), [{"pet": {"kind": "dog", "lives": 2}}], [{"pet": {"lives": 2}}, {"pet": {"kind": "cat"}}]),
    "recursive union": (
        schema_of(Branch),
        [{"node": "branch", "kids": [{"node": "leaf", "value": 1}, {"node": "branch", "kids": []}]}],
        [{"node": "branch", "kids": [{"value": 1}]}],
    ),
    "branches with other required properties": (
        {"oneOf": [closed(a={"type": "string"}), closed(b={"type": "string"})]},
        [{"a": "x"}, {"b": "y"}],
        [{}, {"a": "x", "b": "y"}],
    ),
    "numbers that do not meet": (
        {"oneOf": [{"type": "integer", "minimum": 5}, {"type": "number", "maximum": 4}]},
        [7, 3],
        ["x"],
    ),
    "a list, or one of them": (
        {"oneOf": [{"$ref": "#/definitions/n"}, {"type": "array", "items": {"$ref": "#/definitions/n"}}],
         "definitions": {"n": {"type": "string"}}},
        ["x", ["x", "y"]],
        [1, [1]],
    ),
    "unknown format": ({"type": "string", "format": "phone-number"}, ["x"], [1]),
    "format of a number": ({"type": "integer", "format": "int32"}, [1], ["x"]),
    "unknown keyword with a mark": ({"type": "array", "items": {"type": "null"}, "_uniqueItems": True}, [[None, None]], [1]),
}  # fmt: skip
SHAPES: dict[str, Any] = {
    "kind": {"enum": ["circle", "square", "dot"]},
    "filled": {"type": "boolean"},
    **dict.fromkeys(("r", "side", "colour"), {"type": "integer"}),
}


def if_kind(kind: str) -> dict[str, Any]:
    return {"if": {"properties": {"kind": {"const": kind}}}}


def shape(**conditions: Any) -> dict[str, Any]:
    return {"type": "object", "properties": SHAPES, "required": ["kind"], "additionalProperties": False, **conditions}


BY_LLGUIDANCE: dict[str, Case] = {
    "conditions on any string": (
        {
            "type": "object",
            "properties": {"kind": {"type": "string"}, "r": {"type": "integer"}},
            "required": ["kind"],
            "additionalProperties": False,
            **if_kind("circle"),
            "then": {"required": ["r"]},
        },
        [{"kind": "circle", "r": 1}, {"kind": "circles"}, {"kind": ""}, {"kind": "c", "r": 1}],
        [{"kind": "circle"}],
    ),
    "not both": (
        {
            "type": "object",
            "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
            "not": {"allOf": [{"required": ["a"]}, {"required": ["b"]}]},
        },
        [{"a": None}, {"b": None}, {}],
        [{"a": None, "b": None}],
    ),
    "a required name that is not listed": (
        {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["b"]},
        [{"a": None, "b": 1}, {"b": "x"}],
        [{"a": None}, {}],
    ),
    "two of three": (
        {
            "type": "object",
            "properties": dict.fromkeys("abc", {"type": "null"}),
            "additionalProperties": False,
            "minProperties": 2,
        },
        [{"a": None, "c": None}, {"b": None, "c": None}, {"a": None, "b": None, "c": None}],
        [{"a": None}, {"c": None}, {}],
    ),
    "two of three, one of them required": (
        {
            "type": "object",
            "properties": dict.fromkeys("abc", {"type": "null"}),
            "additionalProperties": False,
            "minProperties": 2,
            "required": ["b"],
        },
        [{"a": None, "b": None}, {"b": None, "c": None}],
        [{"b": None}, {"a": None, "c": None}],
    ),
    "one condition after the other": (
        shape(
            **if_kind("circle"),
            then={"required": ["r"]},
            **{"else": {**if_kind("square"), "then": {"required": ["side"]}, "else": {"properties": {"r": False}}}},
        ),
        [
            {"kind": "circle", "r": 1},
            {"kind": "square", "side": 1},
            {"kind": "square", "r": 2, "side": 1},
            {"kind": "dot", "side": 1},
        ],
        [{"kind": "circle"}, {"kind": "square"}, {"kind": "dot", "r": 1}],
    ),
    "conditions in branches": (
        shape(
            **if_kind("circle"),
            then={
                "required": ["r"],
                "allOf": [
                    {
                        "if": {"properties": {"filled": {"const": True}}, "required": ["filled"]},
                        "then": {"required": ["colour"]},
                    }
                ],
            },
        ),
        [{"kind": "circle", "r": 1}, {"kind": "circle", "filled": True, "r": 1, "colour": 2}, {"kind": "dot", "filled": True}],
        [{"kind": "circle", "filled": True, "r": 1}, {"kind": "circle", "filled": False}],
    ),
    "conditions on what a branch brings": (
        shape(
            **if_kind("circle"),
            then={
                "required": ["filled"],
                "properties": {"filled": {"type": "boolean"}},
                "if": {"properties": {"filled": {"const": True}}},
                "then": {"required": ["colour"]},
            },
        ),
        [{"kind": "circle", "filled": False}, {"kind": "circle", "filled": True, "colour": 2}, {"kind": "dot"}],
        [{"kind": "circle"}, {"kind": "circle", "filled": True}],
    ),
    "conditions on what is not": (
        shape(**{"if": {"properties": {"kind": {"not": {"enum": ["dot", "square"]}}}}}, then={"required": ["r"]}),
        [{"kind": "circle", "r": 1}, {"kind": "dot"}, {"kind": "square", "side": 1}],
        [{"kind": "circle"}, {"kind": "circle", "side": 1}],
    ),
    "lengths of names": (
        schema_of(dict[Annotated[str, pydantic.Field(min_length=1, max_length=3)], int]),
        [{"abc": 1}],
        [{"": 1}, {"abcd": 1}],
    ),
    "branches beside a type, three of them": (
        {
            "type": "object",
            "oneOf": [{"properties": {name: {"type": "string"}}, "required": [name]} for name in ("a", "b", "c")],
        },
        [{"a": "x"}, {"b": "y"}, {"c": "z"}],
        [{}, {"a": "x", "b": "y"}, {"b": "y", "c": "z"}],
    ),
    "dependencies": (
        {"type": "object", "properties": CARD, "dependencies": {"card": ["address"]}},
        [{"card": 1, "address": "x"}, {"address": "x"}, {}, {"note": "x"}],
        [{"card": 1}, {"card": 1, "note": "x"}],
    ),
    "dependencies of dependents": (
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "dependentRequired": {"a": ["b"], "b": ["c"]}},
        [{"a": 1, "b": 1, "c": 1}, {"b": 1, "c": 1}, {"c": 1}, {}],
        [{"a": 1}, {"a": 1, "b": 1}, {"b": 1}],
    ),
}
ALL = [(engine, name) for name in FOLLOWED for engine in ("llguidance", "xgrammar")] + [
    ("llguidance", name) for name in BY_LLGUIDANCE
]


def compiled(engine: str, schema: Any, check: bool = False) -> GrammarState:
    if engine == "xgrammar":
        pytest.importorskip("xgrammar")
    return backend_of(engine).compile("json_schema", with_style(json.dumps(schema), JsonStyle(check=check)))


def is_valid(schema: Any, value: Any) -> bool:
    return jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)(schema).is_valid(value)


@pytest.mark.parametrize(("engine", "name"), ALL)
def test_what_is_followed(engine: str, name: str) -> None:
    schema, good, bad = (FOLLOWED | BY_LLGUIDANCE)[name]
    for value in good:
        assert is_valid(schema, value), value
        assert ends_after(compiled(engine, schema), json.dumps(value, separators=(",", ":"))), value
    for value in bad:
        assert not ends_after(compiled(engine, schema), json.dumps(value)), value
    assert compiled(engine, schema, check=True).unenforced == ()
    rng = random.Random(1)
    texts = [text for _ in range(20) if (text := walk(compiled(engine, schema), rng)) is not None]
    assert texts and all(is_valid(schema, json.loads(text)) for text in texts), texts


_NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)
_SOME = st.lists(st.sampled_from(["a", "b", "ab", 1, None, True]), min_size=1, max_size=3)
_REFUSED = st.recursive(
    st.one_of(
        st.builds(lambda names: {"required": names}, _NAMES),
        st.builds(lambda kind: {"type": kind}, st.sampled_from(["null", "string", "object", "integer", ["string", "null"]])),
        st.builds(lambda values: {"enum": values}, _SOME),
        st.builds(lambda name, schema, more: {"properties": {name: schema}, **more}, st.sampled_from("ab"),
            st.sampled_from([{"const": "a"}, {"enum": ["a", "b"]}, {}, {"type": "string"}, True, False]),
            st.sampled_from([{}, {"required": ["a"]}, {"required": ["b"], "type": "object"}])),
        st.sampled_from([True, False, {}]),
    ),
    lambda inner: st.one_of(
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda parts: {"allOf": parts}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=3,
)  # fmt: skip
_BESIDE = st.sampled_from(
    [
        {"type": "object", "properties": {"a": {"type": ["string", "integer", "null"]}, "b": {"type": "string"}, "c": {}}},
        {"type": "object", "properties": {"a": {"enum": ["a", "b", 1]}}, "required": ["a"]},
        {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        {"type": "string"},
        {"type": "string", "pattern": "^[ab]+$"},
        {"enum": ["a", "b", "ab", 1, None]},
        {"type": ["string", "null", "integer"]},
        {},
    ]
)
_TRIED = [None, True, 0, 1, 2.5, "a", "b", "ab", "", [], {}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}, {"a": "b"}, {"c": 1},
          {"a": "a", "b": "b"}, {"a": None}]  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(_BESIDE, _REFUSED)
def test_what_is_not_allowed_is_told_exactly_or_not_at_all(beside: dict[str, Any], refused: Any) -> None:
    schema = {**beside, "not": refused}
    fine = [value for value in _TRIED if is_valid(schema, value)]
    try:
        state = compiled("llguidance", schema)
    except GrammarError as error:
        assert "/not " in str(error) or not fine, "what can be satisfied is not called impossible"
        return
    taken = [value for value in _TRIED if ends_after(state.copy(), json.dumps(value))]
    assert all(value in fine for value in taken)


@pytest.mark.parametrize("extra", [{}, {"$id": "https://example.com/tree"}])
@pytest.mark.parametrize(
    ("draft", "anchor", "ref"),
    [
        ("2020-12", {"$dynamicAnchor": "node"}, {"$dynamicRef": "#node"}),
        ("2020-12", {"$anchor": "node"}, {"$dynamicRef": "#node"}),
        ("2020-12", {}, {"$dynamicRef": "#"}),
        ("2019-09", {"$recursiveAnchor": True}, {"$recursiveRef": "#"}),
        ("2019-09", {}, {"$recursiveRef": "#"}),
    ],
)
def test_references_that_are_dynamic_in_name_alone(
    draft: str, anchor: dict[str, Any], ref: dict[str, Any], extra: dict[str, Any]
) -> None:
    """The schema as a whole is the outermost that can be meant."""
    schema = {
        "$schema": f"https://json-schema.org/draft/{draft}/schema",
        **extra,
        **anchor,
        **closed(value={"type": "integer"}, kids={"type": "array", "items": ref}),
    }
    state = compiled("llguidance", schema)
    leaf = {"value": 1, "kids": []}
    assert ends_after(state.copy(), json.dumps({"value": 2, "kids": [leaf, {"value": 3, "kids": [leaf]}]}))
    assert not state.copy().accept_all(list(b'{"value": 2, "kids": [3'))


def test_a_reference_that_leads_to_several_places_is_refused() -> None:
    """Which of them is meant depends on the way to it."""
    one = {"$id": "one", "$dynamicAnchor": "n", "type": "integer"}
    other = {"$id": "other", "$dynamicAnchor": "n", "type": "string"}
    schema = {
        "$id": "https://example.com/r",
        "anyOf": [{"$dynamicRef": "one#n"}, {"type": "null"}],
        "$defs": {"a": one, "b": other},
    }
    with pytest.raises(GrammarError, match="dynamicRef"):
        compiled("llguidance", schema)


LEFT: dict[str, tuple[dict[str, Any], set[str]]] = {
    "unique strings": (schema_of(set[str]), {"#/uniqueItems"}),
    "unique integers": (
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "uniqueItems": True}, {"#/uniqueItems"}
    ),
    "contains": ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 1}, "minContains": 2}, {"#/contains"}),
    "not a pattern": ({"type": "string", "not": {"pattern": "^x"}}, {"#/not"}),
    "not an integer": ({"type": "number", "not": {"type": "integer"}}, {"#/not"}),
    "conditions": (
        {"type": "object", "properties": {"a": {"type": "string"}}, "if": {"minProperties": 1}, "then": {"required": ["a"]}, "else": {}},
        {"#/if"},
    ),
    "branches that overlap": ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 3}]}, {"#/oneOf"}),
    "look-ahead": ({"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x)"}}}, {"#/properties/a/pattern"}),
    "a schema that depends": (
        {"type": "object", "properties": {"a": {"type": "string"}}, "dependentSchemas": {"b": {"minProperties": 2}}},
        {"#/dependentSchemas"},
    ),
    "a number beyond what is exact": ({"type": "integer", "multipleOf": 2**60}, {"#/multipleOf"}),
    "in a definition": ({"$ref": "#/$defs/s", "$defs": {"s": {"type": "array", "uniqueItems": True}}}, {"#/$defs/s/uniqueItems"}),
}  # fmt: skip


@both
@pytest.mark.parametrize("name_of_case", LEFT)
def test_what_is_left_to_a_check(name: str, name_of_case: str) -> None:
    """Refused without leave to check, by its path; with it, named."""
    schema, left = LEFT[name_of_case]
    with pytest.raises(GrammarError):
        compiled(name, schema)
    state = compiled(name, schema, check=True)
    assert left <= set(state.unenforced) and state.copy().unenforced == state.unenforced
    if name == "llguidance":
        assert left == set(state.unenforced)


def test_properties_named_by_a_pattern_are_counted_by_a_check() -> None:
    """One that the schema lists may be missing, and one that matches may stand for it: no contradiction."""
    named = {"patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False}
    schema = {"type": "object", **named, "properties": {"a": {}}, "required": ["a"], "minProperties": 2}
    with pytest.raises(GrammarError, match="#/minProperties is not supported"):
        compiled("llguidance", schema)
    assert compiled("llguidance", schema, check=True).unenforced == ("#/minProperties",)
    state = compiled("llguidance", {"type": "object", **named, "minProperties": 1})
    assert not ends_after(state.copy(), "{}") and ends_after(state.copy(), '{"x_1": 2}')
    with pytest.raises(GrammarError, match="Unsatisfiable"):
        compiled("llguidance", {"type": "object", "additionalProperties": False, "minProperties": 1}, check=True)


@both
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/elsewhere.json"},
        {"$ref": "#/definitions/missing"},
        {"type": "array", "items": 7},
    ],
)
def test_no_check_makes_up_for_what_is_no_schema(name: str, schema: Any) -> None:
    with pytest.raises(GrammarError):
        compiled(name, schema, check=True)


# --- oneOf: whatever is generated matches one branch ------------------------------------------------------------------------

_CONST = st.sampled_from([1, 1.0, True, "a", "b", None])
_VALUE = st.one_of(
    st.builds(lambda v: {"const": v}, _CONST),
    st.builds(lambda v: {"enum": v}, st.lists(_CONST, min_size=1, max_size=3)),
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": ["null", "boolean"]}, {"$ref": "#/$defs/r"}]),
    st.builds(lambda low: {"type": "integer", "minimum": low, "maximum": low + 3}, st.integers(0, 6)),
    st.builds(lambda low: {"type": "string", "minLength": low, "maxLength": low + 1}, st.integers(0, 4)),
)  # fmt: skip
_OBJECT = st.builds(
    lambda properties, required, is_closed: {
        "type": "object",
        "properties": properties,
        "required": sorted(required & properties.keys()),
        **({"additionalProperties": False} if is_closed else {}),
    },
    st.dictionaries(st.sampled_from("abc"), _VALUE, max_size=3),
    st.sets(st.sampled_from("abc")),
    st.booleans(),
)
_BRANCH = st.one_of(_OBJECT, _VALUE, st.builds(lambda branch: {"allOf": [branch]}, _VALUE))


@settings(max_examples=60, deadline=None)
@given(st.lists(_BRANCH, min_size=1, max_size=3), _VALUE, st.randoms(use_true_random=False))
def test_one_of_means_exactly_one(branches: list[Any], referred: Any, rng: random.Random) -> None:
    if "$ref" in referred:
        referred = {"type": "boolean"}
    schema = {"oneOf": branches, "$defs": {"r": referred}}
    try:
        state = compiled("llguidance", schema)
    except GrammarError:
        return
    for _ in range(3):
        text = walk(state.copy(), rng)
        assert text is None or is_valid(schema, json.loads(text)), (schema, text)
