"""Names that several patterns match: which of the patterns match, as expressions of which no two overlap."""

from __future__ import annotations

import json
import random
import re
from itertools import product
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.regex.regions import regions
from tests.scheduler.test_backends import backend_of, ends_after, walk

LETTERS = "ab1- é\n"
TEXTS = ["".join(letters) for length in range(5) for letters in product(LETTERS[:4], repeat=length)]
TEXTS += ["".join(letters) for length in range(1, 3) for letters in product(LETTERS, repeat=length)]
_PART = st.sampled_from(
    ["a", "b", "1", "-", ".", "[ab]", "[^a]", r"\d", r"\w", r"\s", r"\D", "[a-b1]", r"[\d-]", "(?:a|b1)", "é"]
)
_PIECE = st.builds(lambda part, times: part + times, _PART, st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,3}", "*?"]))
_PATTERN = st.builds(
    lambda begin, pieces, end, more: f"{begin}{''.join(pieces)}{end}{more}",
    st.sampled_from(["", "^"]),
    st.lists(_PIECE, max_size=3),
    st.sampled_from(["", "$"]),
    st.sampled_from(["", "", "|^b", "|(a|)$"]),
)


def matches(pattern: str, text: str) -> bool:
    """As JSON Schema has it: the end is the end, and the short names are sets of ASCII characters."""
    return re.search(re.sub(r"\$(?=$|\|)", r"\\Z", pattern), text, re.ASCII) is not None


@settings(max_examples=60, deadline=None)
@given(st.lists(_PATTERN, min_size=1, max_size=3))
def test_every_text_is_in_the_region_of_what_it_matches(patterns: list[str]) -> None:
    found = regions(patterns)
    if found is None:
        return
    for text in TEXTS:
        own = frozenset(i for i, pattern in enumerate(patterns) if matches(pattern, text))
        in_regions = [which for which, written in found.items() if matches(written, text)]
        assert in_regions == ([own] if own else []), (text, found)


@pytest.mark.parametrize("pattern", ["(?=a)", r"(a)\1", r"\ba", "(?i)a", "(?<!a)b", "a{3,99}", "(", "(?:a{40}){40}"])
def test_what_has_no_automaton_of_a_fair_size_is_not_written(pattern: str) -> None:
    assert regions([pattern, "^b"]) is None


Schema = dict[str, Any]
OVERLAPPING: dict[str, tuple[Schema, list[str], list[str]]] = {
    "a beginning and an end": (
        {"patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}}, "additionalProperties": False},
        ['{"ab":5}', '{"ac":1}', '{"bb":"x"}', '{"bb":7,"ac":-1}'],
        ['{"ab":4}', '{"ab":"x"}', '{"ac":"x"}', '{"bb":4}', '{"c":1}'],
    ),
    "all names, and some": (
        {"patternProperties": {"^x-": True, ".*": {"type": "string"}}},
        ['{"x-a":"s"}', '{"y":"s"}', '{"":"s"}'],
        ['{"x-a":1}', '{"y":1}'],
    ),
    "some that must not be": (
        {"patternProperties": {"^x-": False, "^[a-z-]+$": {"type": "boolean"}}, "additionalProperties": False},
        ['{"y-":true}', '{"x":true}', "{}"],
        ['{"x-":true}', '{"x-a":true}', '{"y":1}', '{"X":true}'],
    ),
    "a listed name beside them": (
        {
            "properties": {"ab": {"maximum": 9}},
            "patternProperties": {"^a": {"type": "integer"}, "b$": {"minimum": 5}},
            "additionalProperties": {"type": "null"},
            "required": ["ab"],
        },
        ['{"ab":9}', '{"ab":5,"zb":6,"c":null}'],
        ['{"ab":10}', '{"ab":4}', '{"ab":5,"zb":4}', '{"ab":5,"c":1}'],
    ),
    "three of them": (
        {
            "patternProperties": {"^a": {"type": "integer"}, "a$": {"minimum": 2}, "^.$": {"maximum": 4}},
            "additionalProperties": False,
        },
        ['{"a":3}', '{"aba":9}', '{"z":4}', '{"ab":9}'],
        ['{"a":1}', '{"a":5}', '{"aba":1}', '{"z":5}', '{"zz":1}'],
    ),
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_properties_whose_names_match_several_patterns(name: str) -> None:
    schema = {"type": "object", **OVERLAPPING[name][0]}
    _, good, bad = OVERLAPPING[name]
    valid = jsonschema.Draft202012Validator(schema)
    state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
    for text in good:
        assert valid.is_valid(json.loads(text)) and ends_after(state.copy(), text), text
    for text in bad:
        assert not valid.is_valid(json.loads(text)) and not ends_after(state.copy(), text), text
    rng = random.Random(3)
    texts = [text for _ in range(5) if (text := walk(state.copy(), rng, 600)) is not None]
    assert all(valid.is_valid(json.loads(text)) for text in texts)


def test_patterns_that_are_too_much_together_stay_refused() -> None:
    wild = {f"^(?:{a}|.{{0,30}}z){{1,3}}": {"const": a} for a in "abc"}
    schema = {"type": "object", "patternProperties": wild}
    with pytest.raises(GrammarError, match="patternPropert"):
        backend_of("llguidance").compile("json_schema", json.dumps(schema))
