"""Integers beyond what floats hold one by one, and steps beyond what an engine computes with: followed exactly, or not at all."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import GrammarError
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.grammar.schema.numbers import MAX_WHOLE
from tests.scheduler.test_backends import backend_of, both, ends_after, walk

LARGE = st.one_of(
    st.builds(lambda exponent, near: 2**exponent + near, st.integers(53, 62), st.integers(-3, 3)),
    st.integers(2**53, MAX_WHOLE),
    st.sampled_from([2**53, 10**17, 10**18, 10**18 + 1, MAX_WHOLE, MAX_WHOLE - 1, 2**63 - 1, 2**63, 2**64 - 1]),
)
SIGNED = st.builds(lambda number, sign: number * sign, LARGE, st.sampled_from([1, -1]))
LIMITS = st.builds(
    lambda low, width, below, above, kinds: {"type": kinds, below: low, above: low + width},
    SIGNED,
    st.one_of(st.integers(0, 5), st.integers(0, 2**60)),
    st.sampled_from(["minimum", "exclusiveMinimum"]),
    st.sampled_from(["maximum", "exclusiveMaximum"]),
    st.sampled_from(["integer", ["integer"], ["integer", "null"]]),
)
OPEN = st.builds(lambda key, limit: {"type": "integer", key: limit}, st.sampled_from(["minimum", "maximum"]), SIGNED)
VALUES = st.one_of(
    st.builds(lambda value: {"const": value}, SIGNED),
    st.builds(lambda values: {"enum": values}, st.lists(st.one_of(SIGNED, st.just(3)), min_size=1, max_size=3)),
    st.builds(lambda value: {"const": {"a": [value]}}, SIGNED),
)


def compiled(engine: str, schema: Any, check: bool = False) -> GrammarState:
    if engine == "xgrammar":
        pytest.importorskip("xgrammar")
    return backend_of(engine).compile("json_schema", with_style(json.dumps(schema), JsonStyle(check=check)))


@both
@settings(max_examples=40)
@given(st.one_of(LIMITS, OPEN, VALUES), st.integers(0, 99))
def test_what_is_generated_is_valid_to_the_last_digit(name: str, schema: dict[str, Any], seed: int) -> None:
    valid = jsonschema.Draft202012Validator(schema)
    try:
        state = compiled(name, schema)
    except GrammarError:
        loose = compiled_or_none(name, schema)
        assert loose is None or loose.unenforced
        return
    rng = random.Random(seed)
    for _ in range(3):
        text = walk(state.copy(), rng)
        assert text is None or valid.is_valid(json.loads(text)), text
    for near in (number + by for number in numbers_of(schema) for by in (-2, -1, 0, 1, 2)):
        assert valid.is_valid(near) or not ends_after(state.copy(), str(near)), near


def compiled_or_none(engine: str, schema: Any) -> GrammarState | None:
    try:
        return compiled(engine, schema, check=True)
    except GrammarError:
        return None


def numbers_of(schema: dict[str, Any]) -> list[int]:
    values = [*schema.get("enum", []), *(value for value in schema.values() if isinstance(value, int))]
    return [value for value in values if isinstance(value, int)]


@both
@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 2**60}, [2**60, 2**60 + 1, 2**62 + 3], [2**60 - 1, 5]),
        ({"type": "integer", "minimum": 0, "maximum": 2**64 - 1}, [2**62 + 1, MAX_WHOLE, 7], [-1, 2**64]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, [-(2**62) - 1, 2**62 + 1, 0], [2**64]),
        ({"type": "integer", "exclusiveMinimum": 2**53, "exclusiveMaximum": 2**53 + 4}, [2**53 + 2], [2**53, 2**53 + 4]),
        ({"enum": [10**18, 2**62, 3]}, [10**18, 2**62, 3], [10**18 + 1, 2**62 + 1]),
        ({"const": -(10**17)}, [-(10**17)], [-(10**17) + 1]),
    ],
)
def test_integers_of_64_bits(name: str, schema: dict[str, Any], good: list[int], bad: list[int]) -> None:
    state = compiled(name, schema)
    assert all(ends_after(state.copy(), str(value)) for value in good)
    assert not any(ends_after(state.copy(), str(value)) for value in bad)


def test_values_between_floats() -> None:
    """One engine has them, the other names them, or leaves them to a check."""
    schema = {"enum": [2**60 + 1, 2**60, 3]}
    with pytest.raises(GrammarError, match="1152921504606846977 at #/enum is none that floats hold"):
        compiled("llguidance", schema)
    assert compiled("llguidance", schema, check=True).unenforced == ("#/enum/0",)
    state = compiled("xgrammar", schema)
    assert ends_after(state.copy(), str(2**60 + 1)) and not ends_after(state.copy(), str(2**60 + 2))


@pytest.mark.parametrize("step", [10_001, 2**40, 429496730, 123.456])
def test_large_steps_are_left_to_a_check(step: float) -> None:
    schema = {"type": "number", "multipleOf": step}
    with pytest.raises(GrammarError, match="#/multipleOf has too many digits for a step"):
        compiled("llguidance", schema)
    assert compiled("llguidance", schema, check=True).unenforced == ("#/multipleOf",)


@pytest.mark.parametrize("steps", [(65537, 65539), (10_000, 9_999), (0.0003, 7001), (9_000, 9_000.001)])
def test_steps_that_hold_together(steps: tuple[float, float]) -> None:
    """Their product wraps around in the engine: 262147 would be taken for a multiple of 65537 and 65539."""
    schema = {"allOf": [{"type": "number", "multipleOf": step} for step in steps]}
    with pytest.raises(GrammarError, match="multipleOf"):
        compiled("llguidance", schema)
    state = compiled("llguidance", schema, check=True)
    assert state.unenforced


@pytest.mark.parametrize(("one", "other", "both_of"), [(6, 4, 12), (1.5, 1, 3), (1000, 500, 1000), (25, 25, 25)])
def test_small_steps_hold_together(one: float, other: float, both_of: int) -> None:
    state = compiled("llguidance", {"allOf": [{"type": "integer", "multipleOf": one}, {"multipleOf": other}]})
    assert ends_after(state.copy(), str(3 * both_of)) and ends_after(state.copy(), "0")
    assert not ends_after(state.copy(), str(both_of + 1))
