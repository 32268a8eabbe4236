"""Constraints that are wrong, strange or out to do harm: refused with a sentence, or followed to the letter. Some of these stopped
the process once."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.compiler import GrammarCompiler
from sglang.srt.scheduler.grammar.schema.numbers import MAX_EXACT, MAX_WHOLE
from tests.scheduler.test_backends import backend_of, both, ends_after, walk

HUGE = -(2**63)


def compile_schema(name: str, schema: Any) -> Any:
    return backend_of(name).compile("json_schema", json.dumps(schema))


@both
@pytest.mark.parametrize(
    "schema",
    [
        {"const": HUGE},
        {"const": 2.0**54},
        {"const": -1e300},
        {"enum": [1, [{"a": [HUGE]}]]},
        {"enum": [0.1 + 0.2]},
        {"const": 123456789.123456789},
        {"const": 1e-300},
        {"$ref": "#/hidden/place", "hidden": {"place": {"const": HUGE}}},
        {"type": "object", "properties": {"const": {"type": "integer"}, "a": {"const": HUGE}}},
        {"type": "number", "minimum": 2**53 + 1, "maximum": 2**53 + 3},
        {"type": "integer", "minimum": 1e20},
        {"type": "number", "maximum": HUGE},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1e-12},
        {"type": "number", "multipleOf": 1e-300},
    ],
)
def test_numbers_that_engines_do_not_hold_are_refused(name: str, schema: Any) -> None:
    with pytest.raises(GrammarError, match="number|supported"):
        compile_schema(name, schema)


@both
@pytest.mark.parametrize("low", [HUGE, -(2**63) + 1, -1e300])
@pytest.mark.parametrize("high", [2**63 - 1, 2**64, 1e300])
def test_limits_as_far_as_64_bits_go_are_followed(name: str, low: float, high: float) -> None:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    state = compile_schema(name, schema)
    for seed in range(5):
        text = walk(state.copy(), random.Random(seed))
        assert text is None or abs(json.loads(text)) <= MAX_WHOLE


def numbers() -> st.SearchStrategy[Any]:
    whole = st.one_of(st.integers(-20, 20), st.integers(-(2**66), 2**66), st.sampled_from([MAX_EXACT, -MAX_EXACT, 10**15]))
    decimals = st.builds(round, st.floats(-1000, 1000, allow_nan=False), st.integers(0, 9))
    return st.one_of(
        whole, decimals, st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([1e-9, -1e-9, 0.5, -0.0])
    )


LIMITS = ["minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"]
SCHEMAS = st.one_of(
    st.builds(
        lambda kind, limits: {"type": kind, **limits},
        st.sampled_from(["integer", "number"]),
        st.dictionaries(st.sampled_from(LIMITS), numbers()),
    ),
    st.builds(lambda values: {"enum": values}, st.lists(numbers(), min_size=1, max_size=3)),
)


@both
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS)
def test_numbers_under_any_limits_are_valid(name: str, schema: dict[str, Any]) -> None:
    try:
        state = compile_schema(name, schema)
    except GrammarError:
        return
    for seed in range(3):
        text = walk(state.copy(), random.Random(seed), 100)
        if text is not None:
            assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), text


@both
@pytest.mark.parametrize(
    "low",
    [
        {},
        {"exclusiveMinimum": 0},
        {"exclusiveMinimum": -0.5},
        {"minimum": -0.5},
        {"minimum": 0},
        {"minimum": -1, "exclusiveMinimum": 0},
    ],
)
@pytest.mark.parametrize("high", [{}, {"exclusiveMaximum": 0}, {"exclusiveMaximum": 0.5}, {"maximum": 0}, {"maximum": 0.001}])
def test_zero_is_excluded_where_it_is(name: str, low: dict[str, float], high: dict[str, float]) -> None:
    schema = {"type": "number", **low, **high}
    try:
        state = compile_schema(name, schema)
    except GrammarError:
        return
    for text in ("0", "-0", "0.0", "-0.0", "0.5", "0.50", "-0.5", "0.001", "0.0010", "0.000000001", "-0.000000001", "0e1"):
        if ends_after(state.copy(), text):
            assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), text


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("ebnf", 'start: %json { "const": -9223372036854775808 }'),
        ("ebnf", 'start: "a" %json\n  {"properties": {"b": {"enum": [-9223372036854775808]}}}'),
        ("ebnf", "start: %json {"),
        ("ebnf", "start: %json " + "[" * 100_000),
        (
            "structural_tag",
            '{"structures": [{"begin": "<f", "schema": {"const": -9223372036854775808}, "end": ">"}], "triggers": ["<f"]}',
        ),
    ],
)
def test_no_way_around_the_numbers(kind: str, text: str) -> None:
    with pytest.raises(GrammarError):
        backend_of("llguidance").compile(kind, text)


def test_schemas_inside_grammars_still_work() -> None:
    state = backend_of("llguidance").compile(
        "ebnf", 'start: "<" %json {"type": "object", "properties": {"a": {"const": 5}}} ">"'
    )
    assert state.accept_all(list(b'<{"a":5}>'))
    schema = {"properties": {"const": {"maximum": 2**63}, "enum": {"type": "integer"}}}
    backend_of("llguidance").compile("ebnf", "start: %json " + json.dumps(schema))


@both
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"const": NaN}', "NaN"),
        ('{"maximum": -Infinity}', "Infinity"),
        ('{"type": "string", "type": "integer"}', "'type' occurs twice"),
        ('{"properties": {"a": {"const": 1, "const": 2}}}', "'const' occurs twice"),
        ('{"enum": ["\\ud800"]}', "."),
        ("", "not valid JSON"),
        ("[1]", "object"),
        ('{"items":' * 2000 + "{}" + "}" * 2000, "deep"),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "."),
        ('{"allOf": [{"type": "string"}, {"type": "integer"}]}', "."),
        ('{"type": "string", "minLength": 5, "maxLength": 2}', "."),
        ('{"type": "object", "required": ["a"], "properties": {"a": false}}', "."),
    ],
)
def test_what_is_no_schema_or_has_no_answer_is_refused(name: str, text: str, why: str) -> None:
    with pytest.raises(GrammarError, match=why):
        state = backend_of(name).compile("json_schema", text)
        raise AssertionError(f"followed: {walk(state, random.Random(1))!r}")


def test_words_of_the_engine_are_translated() -> None:
    with pytest.raises(GrammarError, match="no text satisfies it"):
        compile_schema("llguidance", {"$ref": "#"})
    deep: Any = {"type": "null"}
    for _ in range(100):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    with pytest.raises(GrammarError, match="nested too deeply"):
        compile_schema("llguidance", deep)


def test_half_a_surrogate_pair_is_refused_at_once() -> None:
    compiler = GrammarCompiler(backend_of("llguidance"), GrammarOptions())
    for kind in ("regex", "ebnf", "json_schema", "structural_tag"):
        job = compiler.submit((kind, "a\ud800"))
        assert job.done and "surrogate" in str(job.error)
    compiler.close()


@both
@pytest.mark.parametrize(
    "pattern", ["日本(語|人){1,3}", "[äöü]{3}ß", "😀{2}[😁😂]", "[\u0430-\u044f]{2,4}", "a\x00b", "e\u0301{2}", "\u202e\ufeff"]
)
def test_other_scripts(name: str, pattern: str) -> None:
    state = backend_of(name).compile("regex", pattern)
    for seed in range(5):
        text = walk(state.copy(), random.Random(seed))
        assert text is not None and re.fullmatch(pattern, text.decode())


@both
def test_other_scripts_in_schemas(name: str) -> None:
    schema = {
        "type": "object",
        "properties": {"名前": {"enum": ["ä", "日本語", "😀", '"\\/\b\f\n\u2028']}, "": {"type": "null"}},
        "required": ["名前", ""],
    }
    for seed in range(8):
        text = walk(compile_schema(name, schema), random.Random(seed))
        assert text is not None and jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


@both
def test_huge_enums(name: str) -> None:
    values = [f"value number {i} of many" for i in range(6000)] + ["x" * i for i in range(1, 200)]
    state = compile_schema(name, {"enum": values})
    for seed in range(5):
        text = walk(state.copy(), random.Random(seed))
        assert text is not None and json.loads(text) in values
