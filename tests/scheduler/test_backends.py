"""The contract of grammar engines: the same tests for both. xgrammar is an extra; its half is skipped where it is absent."""

from __future__ import annotations

import importlib.util
import json
import random
import re
from typing import Any, Literal, cast

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang.srt.config import GrammarOptions, ScheduleOptions
from sglang.srt.errors import ConfigError, GrammarError
from sglang.srt.json_style import JsonStyle, with_style
from sglang.srt.messages import FinishReason
from sglang.srt.scheduler.grammar.engines.base import GrammarBackend, GrammarState
from sglang.srt.scheduler.grammar.engines.registry import create_backend
from tests.scheduler.schemas import SchemaMaker
from tests.scheduler.test_grammar import _REGEXES, CHARACTER, IP, SCHEMA, allowed_by, run_with_compiling
from tests.scheduler.toy import EOS, THINK_END, VOCABULARY, Harness, ToyWorker, make_req

Name = Literal["llguidance", "xgrammar"]
needs_xgrammar = pytest.mark.skipif(importlib.util.find_spec("xgrammar") is None, reason="the extra xgrammar is not installed")
ENGINES = [pytest.param("llguidance"), pytest.param("xgrammar", marks=needs_xgrammar)]
both = pytest.mark.parametrize("name", ENGINES)
_made: dict[str, GrammarBackend] = {}


def backend_of(name: str) -> GrammarBackend:
    if name not in _made:
        made = create_backend(VOCABULARY, GrammarOptions(backend=cast(Name, name)))
        assert made is not None
        _made[name] = made
    return _made[name]


def walk(state: GrammarState, rng: random.Random, limit: int = 400) -> bytes | None:
    """A random output, leaning towards what closes; None if it does not end."""
    out: list[int] = []
    closing = {ord(c) for c in '"]}'} | {EOS}
    while not state.is_finished:
        allowed = sorted(allowed_by(state))
        assert allowed, "a dead end"
        assert not (set(allowed) - {EOS}) & VOCABULARY.special_ids and max(allowed) < VOCABULARY.size
        ends = [token for token in allowed if token in closing]
        token = rng.choice(ends if ends and rng.random() < 0.3 else allowed)
        if token == EOS:
            break
        assert state.accept(token)
        out.append(token)
        if len(out) > limit:
            return None
    return VOCABULARY.text_bytes(out)


def ends_after(state: GrammarState, text: str) -> bool:
    return state.accept_all(list(text.encode())) and (state.is_finished or EOS in allowed_by(state))


@both
def test_schemas_as_people_write_them_hold(name: str) -> None:
    rng, ended = random.Random(3), 0
    for seed in range(200):
        schema = SchemaMaker(seed, plain=name == "xgrammar").make()
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
        state = backend_of(name).compile("json_schema", json.dumps(schema))
        text = walk(state, rng)
        if text is not None:
            ended += 1
            value = json.loads(text)
            assert validator.is_valid(value), (schema, text)
    assert ended > 150


@both
@settings(max_examples=100, deadline=None)
@given(pattern=_REGEXES, seed=st.integers(0, 2**32))
def test_random_regexes_hold(name: str, pattern: str, seed: int) -> None:
    text = walk(backend_of(name).compile("regex", pattern), random.Random(seed), 60)
    assert text is None or re.fullmatch(pattern, text.decode())


@both
@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("^abc$", ["abc"], ["ab", "abcd"]),
        (r"\d+", ["12"], ["\u0663", "a"]),
        (r"[^\W\d_]+", ["ab"], ["1", "_"]),
        (r"[\s\d]+", ["1 2"], ["a"]),
        (".", ["a", "\u00e9"], ["\n"]),
        ("(?s).", ["\n"], []),
        ("(?i)ab[c-e]", ["ABc", "aBD"], ["abf"]),
        ('{"a": [0-9]{1,2}}', ['{"a": 12}'], ['{"a": }']),
        ("a{,2}b", ["b", "aab"], ["aaab"]),
        (r"[\]\-^]", ["]", "-", "^"], ["a"]),
        ("a|", ["a", ""], ["b"]),
        ("(?:x{2}|y)*z?", ["xxyz", ""], ["xyz"]),
        (IP, ["127.0.0.1"], ["abc", "127.0.0.1.1.1"]),
    ],
)
def test_expressions_mean_what_python_says(name: str, pattern: str, yes: list[str], no: list[str]) -> None:
    state = backend_of(name).compile("regex", pattern)
    for text in yes:
        assert re.fullmatch(pattern, text), "the test itself"
        assert ends_after(state.copy(), text), text
    for text in no:
        assert not ends_after(state.copy(), text), text


@both
@pytest.mark.parametrize("pattern", ["(?=a)b", r"(a)\1", r"\bword", "[", "a{3,1}", "*a", "(a)?(?(1)b|c)", "(" * 5000, "a^b"])
def test_bad_expressions_are_refused(name: str, pattern: str) -> None:
    with pytest.raises(GrammarError, match="^regex: "):
        backend_of(name).compile("regex", pattern)


@both
def test_json_without_white_space_is_in_the_order_of_the_schema(name: str) -> None:
    rng = random.Random(1)
    for _ in range(5):
        compact = with_style(json.dumps(SCHEMA), JsonStyle(whitespace=""))
        text = walk(backend_of(name).compile("json_schema", compact), rng)
        assert text is not None
        value = json.loads(text)
        assert list(value) == ["name", "age", "tags", "ok"] and 0 <= value["age"] <= 150 and len(value["name"]) <= 8
        assert text.decode() == json.dumps(value, separators=(",", ":"), ensure_ascii=False) or b"\\" in text
    anything = backend_of(name).compile("json_schema", "$$ANY$$")
    assert ends_after(anything.copy(), '{"a":[null]}') and not ends_after(anything, "{a}")


@both
@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}, "#/properties/a/uniqueItems"),
        ({"anyOf": [{"type": "null"}, {"type": "string", "not": {"pattern": "a"}}]}, "#/anyOf/1/not"),
        ({"type": "array", "contains": {"type": "null"}}, "#/contains"),
        ({"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}}, "#/if"),
        ({"type": "string", "maxlength": 3}, "#/maxlength; did you mean 'maxLength'"),
        ({"type": "string", "nullable": True}, "#/nullable"),
        ({"type": "array", "items": 3}, "#/items is not a schema"),
    ],
)
def test_what_is_not_followed_is_refused_by_its_path(name: str, schema: dict[str, Any], path: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(path)):
        backend_of(name).compile("json_schema", json.dumps(schema))


@both
@pytest.mark.parametrize("text", ["{", "3", "false", '{"type":"foo"}', '{"items":' * 3000 + "{}" + "}" * 3000])
def test_bad_schemas_are_refused(name: str, text: str) -> None:
    with pytest.raises(GrammarError, match="^json_schema: "):
        backend_of(name).compile("json_schema", text)


@both
def test_grammars_and_tags(name: str) -> None:
    state = backend_of(name).compile("ebnf", 'root ::= "a" (", " item)*\nitem ::= [bc]{2}')
    assert ends_after(state.copy(), "a, bc, cb") and not ends_after(state, "a, b")
    with pytest.raises(GrammarError, match="^ebnf: .*foo"):
        backend_of(name).compile("ebnf", "root ::= foo")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    tag = {"structures": [{"begin": "<f=x>", "schema": schema, "end": "</f>"}], "triggers": ["<f="]}
    state = backend_of(name).compile("structural_tag", json.dumps(tag))
    assert state.accept_all(list(b"say <f=x>"))
    assert allowed_by(state) & set(range(256)) == {ord("{")}
    assert ends_after(state, '{"n":12}</f>')
    with pytest.raises(GrammarError, match="no trigger"):
        backend_of(name).compile("structural_tag", '{"structures":[{"begin":"x"}],"triggers":["y"]}')
    for change in ({"at_least_one": True}, {"structures": [{**tag["structures"][0], "style": "xml"}]}):  # type: ignore[dict-item]
        with pytest.raises(GrammarError, match="unknown key"):
            backend_of(name).compile("structural_tag", json.dumps({**tag, **change}))


@both
def test_states_are_copied_and_rolled_back(name: str) -> None:
    state = backend_of(name).compile("regex", "ab[cd]")
    other = state.copy()
    assert state.accept_all([97, 98]) and allowed_by(state) == {99, 100}
    assert state.rollback(1) and 98 in allowed_by(state)
    assert allowed_by(other) & {97, 98} == {97} and not state.is_finished
    assert VOCABULARY.text_bytes(state.forced_tokens()) == (b"b" if name == "llguidance" else b""), (
        "a longer token may begin with b"
    )
    assert state.accept_all([98, 99]) and state.is_finished
    assert not other.accept(122) and other.error is not None
    assert not other.accept(EOS), "an end of text does not make it good again"


@both
def test_masks_fit_the_model_whatever_the_tokenizers_size(name: str) -> None:
    states = [backend_of(name).compile("regex", f"[{chr(97 + i)}x]") for i in range(5)]
    for words in (8, 9, 10, 20):
        many = np.full((5, words), 0xFFFFFFFF, dtype=np.uint32)
        backend_of(name).fill_masks(states, many)
        for i, row in enumerate(many):
            assert np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist() == sorted([97 + i, 120])


@both
@pytest.mark.parametrize("jump", [True, False])
def test_concurrent_requests_with_retraction(name: str, jump: bool) -> None:
    options = GrammarOptions(backend=cast(Name, name), jump_forward=jump)
    patterns = [rf"x{{{n}}}[0-9a-f]{{4}}(the|ab)+" for n in range(1, 8)] + [CHARACTER]
    reqs = [make_req(f"c{i}", [i], 200, True, 1.0, seed=i, regex=p) for i, p in enumerate(patterns)]
    harness = Harness(ToyWorker(), ScheduleOptions(test_retract_every=5), options)
    answers = run_with_compiling(harness, reqs)
    for pattern, answer in zip(patterns, answers, strict=True):
        assert answer.finish is not None
        assert answer.finish.type == "length" or re.fullmatch(pattern, answer.text().decode())
    alone = run_with_compiling(Harness(grammar=options), [reqs[2]])
    assert alone[0].ids == answers[2].ids


@both
def test_an_output_ends_with_its_grammar(name: str) -> None:
    options = GrammarOptions(backend=cast(Name, name))
    whole, cut = run_with_compiling(
        Harness(grammar=options), [make_req("a", [1], 9, regex="abc", ignore_eos=True), make_req("b", [1], 2, regex="x{5}")]
    )
    assert whole.text() == b"abc" and whole.finish == FinishReason("stop", matched=whole.ids[-1])
    assert cut.finish == FinishReason("length", length=2)


@both
def test_thinking_is_free_and_the_answer_constrained(name: str) -> None:
    harness = Harness(grammar=GrammarOptions(backend=cast(Name, name)), check=False)
    req = make_req("t", [3], 900, seed=3, temperature=1.0, regex="(yes|no)", grammar_after=(THINK_END, 7), ignore_eos=True)
    (answer,) = run_with_compiling(harness, [req])
    at = next(i for i, token in enumerate(answer.ids) if token in (THINK_END, 7))
    assert VOCABULARY.text_bytes(answer.ids[at + 1 :]) in (b"yes", b"no")


@needs_xgrammar
def test_white_space_that_xgrammar_cannot_follow() -> None:
    with pytest.raises(ConfigError, match="whitespace"):
        create_backend(VOCABULARY, GrammarOptions(backend="xgrammar", whitespace_pattern="[ ]{0,2}"))
    backend = create_backend(VOCABULARY, GrammarOptions(backend="xgrammar", whitespace_pattern=r"[\n\t ]*"))
    assert backend is not None
    assert ends_after(backend.compile("json_schema", json.dumps(SCHEMA)), '{ "name" : "x", "age":3,"tags":[ ],"ok":true}')


def test_no_engine_says_so() -> None:
    assert create_backend(VOCABULARY, GrammarOptions(backend="none")) is None
    if importlib.util.find_spec("xgrammar") is None:
        with pytest.raises(ConfigError, match=r"sglang-anywhere\[xgrammar\]"):
            create_backend(VOCABULARY, GrammarOptions(backend="xgrammar"))
