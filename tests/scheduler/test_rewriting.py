"""No rewriting of a schema lets an invalid answer through: whatever an engine allows is valid under the schema as it was written. The
same schemas go through both engines; what an engine refuses is no fault here, as long as it takes most of them."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sglang.srt.errors import GrammarError
from sglang.srt.scheduler.grammar.schema.json_schema import prepare_value
from tests.scheduler.rewritten import OLD_DRAFTS, REWRITTEN
from tests.scheduler.test_backends import backend_of, both, ends_after, walk
from tests.scheduler.test_grammar import allowed_by
from tests.scheduler.toy import EOS, VOCABULARY

Schema = dict[str, Any]
LONG = 600
SEEDS = st.integers(0, 2**16)
SCHEMAS = {**REWRITTEN, **{draft: made.map(lambda s, d=draft: {"$schema": d, **s}) for draft, made in OLD_DRAFTS.items()}}


def answers(name: str, schema: Schema, seed: int, num: int) -> Iterator[bytes]:
    """Random answers that the engine allows. Fails where an answer comes to a dead end. Raises GrammarError."""
    state = backend_of(name).compile("json_schema", json.dumps(schema))
    rng = random.Random(seed)
    for _ in range(num):
        text = walk(state.copy(), rng, LONG)
        if text is not None:
            yield text


def check_validity(name: str, schema: Schema, seed: int, num: int) -> str:
    """What the engine does with it. Raises AssertionError for an answer that is not valid."""
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)
    try:
        for text in answers(name, schema, seed, num):
            error = next(validator.iter_errors(json.loads(text)), None)
            assert error is None, (schema, text, error and error.message)
    except GrammarError as error:
        return "unsatisfiable" if "nsatisfiable" in str(error) or "no value" in str(error) else "refused"
    return "taken"


def check_rule(name: str, rule: str, num_schemas: int, num_answers: int) -> Counter[str]:
    found: Counter[str] = Counter()

    @settings(max_examples=num_schemas, deadline=None, suppress_health_check=list(HealthCheck))
    @given(SCHEMAS[rule], SEEDS)
    def check(schema: Schema, seed: int) -> None:
        found[check_validity(name, schema, seed, num_answers)] += 1

    check()
    return found


@both
@pytest.mark.parametrize("rule", SCHEMAS)
def test_what_is_generated_is_valid_under_the_schema_as_written(name: str, rule: str) -> None:
    check_rule(name, rule, 8, 3)


def test_objects_by_patterns_of_names_are_valid_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.scheduler.grammar.schema.rewriting.properties.MANY", 0)
    for rule in ("objects are closed", "objects are closed together", "oneOf"):
        check_rule("llguidance", rule, 8, 3)


def within_a_tag(name: str, schema: Schema, seed: int, keywords: bool) -> str | None:
    """A random answer between tags; None if it does not end."""
    tag = {"begin": "<f>", "schema": schema, "end": "</f>", "keywords": keywords}
    state = backend_of(name).compile("structural_tag", json.dumps({"structures": [tag], "triggers": ["<f>"]}))
    assert state.accept_all(list(b"<f>"))
    rng, out = random.Random(seed), bytearray()
    while not out.endswith(b"</f>"):
        allowed = sorted(allowed_by(state) - {EOS})
        assert allowed, "a dead end"
        ends = [token for token in allowed if token in set(b'"]}<,')]
        token = rng.choice(ends if ends and rng.random() < 0.3 else allowed)
        assert state.accept(token)
        out += VOCABULARY.text_bytes([token])
        if len(out) > LONG:
            return None
    return out[:-4].decode()


@both
@settings(max_examples=15, deadline=None)
@given(schema=REWRITTEN["objects are closed"], seed=SEEDS)
def test_arguments_in_tags_are_valid(name: str, schema: Schema, seed: int) -> None:
    for keywords in (False, True) if name == "llguidance" else (False,):
        try:
            text = within_a_tag(name, schema, seed, keywords)
        except GrammarError:
            continue
        if text is not None and keywords:
            calls = ast.parse(f"f({text})", mode="eval").body.keywords  # type: ignore[attr-defined]
            value = {keyword.arg: literal(keyword.value) for keyword in calls}
        else:
            value = None if text is None else json.loads(text)
        assert text is None or jsonschema.Draft202012Validator(schema).is_valid(value), (schema, text)


def literal(node: ast.expr) -> Any:
    """A value in which JSON's names may stand beside Python's."""
    names = {"true": True, "false": False, "null": None}
    return eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}}, names)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@both
@pytest.mark.parametrize("rule", SCHEMAS)
def test_many_of_each_rewriting(name: str, rule: str) -> None:
    found = check_rule(name, rule, 150, 5)
    assert found["taken"] > (found["refused"] if name == "llguidance" else 10), found


def shipped_schemas(most: int) -> list[Schema]:
    """What Pydantic writes for the models of a client that ships with hundreds: unions with discriminators, defaults, references."""
    module = importlib.import_module("openai.types.responses")
    models = [value for _, value in sorted(vars(module).items()) if inspect.isclass(value)]
    models = [model for model in models if issubclass(model, pydantic.BaseModel)]
    schemas = [model.model_json_schema() for model in random.Random(2).sample(models, 3 * most)]
    return sorted(schemas, key=lambda schema: len(str(schema)))[most // 2 : most // 2 + most]


@both
def test_schemas_that_ship_with_packages(name: str) -> None:
    found = Counter(check_validity(name, schema, 1, 2) for schema in shipped_schemas(12))
    assert found == {"taken": 12}


# --- oneOf ------------------------------------------------------------------------------------------------------------------

NAME, MAIL = {"type": "string", "maxLength": 8}, {"type": "string", "maxLength": 12}


def shape(required: list[str], **properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": required}


@both
@pytest.mark.parametrize(
    ("branches", "yes", "no"),
    [
        # whatever the second allows, the first allows too
        ([shape(["name"], name=NAME), shape(["name", "email"], name=NAME, email=MAIL)], ['{"name":"x"}'], ['{"name":"x","email":"y"}']),
        ([shape(["a"], a=NAME), shape(["b"], b=NAME)], ['{"a":"x"}', '{"b":"x"}'], ['{"a":"x","b":"y"}', "{}"]),
        ([shape([], kind={"const": "a"}, n=NAME), shape([], kind={"const": "b"}, m=NAME)],
         ['{"kind":"a"}', '{"kind":"b","m":"x"}'], ["{}", '{"m":"x"}']),
        ([shape([], k={"enum": ["a", "b"]}), shape([], k={"const": "c"}), {"type": "null"}], ['{"k":"b"}', '{"k":"c"}', "null"], ["{}"]),
        ([{"type": "integer", "maximum": 3}, {"type": "integer", "minimum": 4}, {"type": "string", "maxLength": 1}],
         ["3", "4", '"x"'], []),
        ([{**shape([], env=NAME), "additionalProperties": False}, {**shape([], file=NAME), "additionalProperties": False}],
         ['{"env":"x"}', '{"file":"x"}'], ["{}", '{"env":"x","file":"x"}']),
        ([{"type": "integer"}, {"type": "integer", "minimum": 4}, {"type": "null"}], None, None),
        ([{"enum": [1, 2]}, {"enum": [2, 3]}], None, None),
        ([{"type": "integer"}, {"type": "number"}], None, None),
        ([{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}], None, None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("behind_references", [False, True])
def test_a_value_satisfies_exactly_one_branch(
    name: str, branches: list[Schema], yes: list[str] | None, no: list[str] | None, behind_references: bool
) -> None:
    schema: Schema = {"oneOf": branches}
    if behind_references:
        schema = {"oneOf": [{"$ref": f"#/$defs/b{i}"} for i in range(len(branches))]}
        schema["$defs"] = {f"b{i}": branch for i, branch in enumerate(branches)}
    if yes is None:
        with pytest.raises(
            GrammarError, match="#/oneOf is not supported here: its branches 0 and 1 cannot be shown to exclude"
        ):
            backend_of(name).compile("json_schema", json.dumps(schema))
        return
    state = backend_of(name).compile("json_schema", json.dumps(schema))
    valid = jsonschema.Draft202012Validator(schema).is_valid
    for text in yes:
        assert valid(json.loads(text)) and ends_after(state.copy(), text), text
    for text in no or []:
        assert not ends_after(state.copy(), text), text


def test_branches_speak_beside_what_stands_around_them() -> None:
    schema = {**shape(["k"], k={"type": "null"}, a=NAME, b=NAME), "oneOf": [{"required": ["a"]}, {"required": ["k", "b"]}]}
    state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
    for text in ('{"k":null,"a":"x"}', '{"k":null,"b":"x"}'):
        assert ends_after(state.copy(), text), text
    for text in ('{"k":null}', '{"k":null,"a":"x","b":"x"}', '{"k":null,"a":"x","c":1}'):
        assert not ends_after(state.copy(), text), text


@both
def test_unions_that_lead_back_to_themselves(name: str) -> None:
    leaf, pair = shape([], kind={"const": "leaf"}), shape([], kind={"const": "pair"}, of={"$ref": "#/$defs/Tree"})
    either = {"oneOf": [{"$ref": "#/$defs/Leaf"}, {"$ref": "#/$defs/Pair"}]}
    state = backend_of(name).compile(
        "json_schema", json.dumps({"$ref": "#/$defs/Tree", "$defs": {"Tree": either, "Leaf": leaf, "Pair": pair}})
    )
    assert ends_after(state.copy(), '{"kind":"pair","of":{"kind":"pair","of":{"kind":"leaf"}}}')
    assert not ends_after(state.copy(), '{"kind":"pair","of":{}}')


def test_a_name_that_a_pattern_allows_is_no_further_one() -> None:
    """Both branches allow {"a": 1, "b": 2}."""
    patterned = {**shape(["a"], a={}), "patternProperties": {"^b": {"type": "integer"}}, "additionalProperties": False}
    listed = {**shape(["a", "b"], a={}, b={"type": "integer"}), "additionalProperties": False}
    with pytest.raises(GrammarError, match="#/oneOf is not supported here"):
        backend_of("llguidance").compile("json_schema", json.dumps({"oneOf": [patterned, listed]}))


@pytest.mark.parametrize("key", ["allOf", "anyOf"])
@pytest.mark.parametrize("around", ["oneOf", "anyOf", "allOf"])
def test_comparisons_come_to_an_end(key: str, around: str) -> None:
    """Each schema refers twice to the next one: there are 2^60 ways through them."""
    chain: Schema = {f"d{i}": {key: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    ends = [{"$ref": "#/$defs/d0"}, shape(["q"], q={})]
    schema = {around: ends, "properties": {"y": {}}, "$defs": {**chain, "d60": shape([], z={})}}
    with contextlib.suppress(GrammarError):
        prepare_value(schema, frozenset({"allOf", "anyOf", "oneOf", "$ref", "type", "properties", "required"}))


@both
def test_exactly_none(name: str) -> None:
    with pytest.raises(GrammarError, match="no value satisfies exactly one branch of #/items/oneOf"):
        backend_of(name).compile("json_schema", '{"type":"array","items":{"oneOf":[{"type":"null"},{"type":"null"}]}}')


# --- closed objects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"allOf": [shape(["a"], a={}), shape([], b={})]}, ['{"a":1}', '{"a":1,"b":2}'], ['{"a":1,"c":2}']),
        ({"allOf": [{"$ref": "#/$defs/A"}], "properties": {"b": {}}, "$defs": {"A": shape(["a"], a={})}}, ['{"a":1,"b":2}'], ['{"a":1,"c":2}']),
        ({**shape([], a={}, b={}), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1}', '{"b":1}'], ["{}", '{"a":1,"c":2}']),
        ({**shape(["k"], k={}), "anyOf": [shape(["a"], a={}), shape(["b"], b={})]}, ['{"k":1,"a":1}', '{"k":1,"b":1}'],
         ['{"k":1,"a":1,"b":2}', '{"k":1}', '{"k":1,"a":1,"c":1}']),
        # one object that several schemas speak of opens no other
        ({"type": "array", "items": shape([], a={}), "allOf": [{"minItems": 1}]}, ['[{"a":1}]'], ['[{"b":1}]']),
        (shape([], x={"allOf": [{"additionalProperties": {}}, shape([], a={})]}, y=shape([], a={})), ['{"x":{"q":1}}', '{"y":{"a":1}}'],
         ['{"y":{"q":1}}', '{"z":1}']),
        (shape([], x={"allOf": [{"$ref": "#/$defs/A"}, shape([], b={})]}, y={"$ref": "#/$defs/A"}) | {"$defs": {"A": shape([], a={})}},
         ['{"x":{"a":1,"b":1},"y":{"a":1}}'], ['{"y":{"a":1,"b":1}}', '{"x":{"c":1}}']),
    ],
)  # fmt: skip
def test_objects_are_closed_one_by_one(schema: Schema, yes: list[str], no: list[str]) -> None:
    state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
    for text in yes:
        assert ends_after(state.copy(), text), text
    for text in no:
        assert not ends_after(state.copy(), text), text


# --- names ------------------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("others", [True, {"type": "null"}])
def test_a_listed_name_is_not_written_in_another_way(name: str, others: Any) -> None:
    schema = {**shape([], a={"type": "integer"}), "additionalProperties": others}
    try:
        state = backend_of(name).compile("json_schema", json.dumps(schema))
    except GrammarError as error:
        assert name == "xgrammar" and "#/additionalProperties" in str(error)
        return
    assert ends_after(state.copy(), '{"a":1}')
    assert ends_after(state.copy(), '{"a":1,"b":null}') == (name == "llguidance")
    for text in ('{"a":1,"\\u0061":null}', '{"\\u0061":null}', '{"a":1,"a":null}'):
        assert not ends_after(state.copy(), text), text


def test_control_characters_can_be_written_where_a_schema_names_them() -> None:
    compile = backend_of("llguidance").compile
    assert ends_after(compile("json_schema", '{"const":"a\\u0001"}'), '"a\\u0001"')
    assert ends_after(compile("json_schema", '{"type":"string","pattern":"^\\\\x01$"}'), '"\\u0001"')
    with pytest.raises(GrammarError, match="control characters"):
        compile("json_schema", json.dumps({"properties": {"\x01": {}}, "additionalProperties": True}))


@both
@pytest.mark.parametrize(
    "names",
    [
        {"additionalProperties": {"type": "null"}},
        {"additionalProperties": {"type": "null"}, "propertyNames": {"maxLength": 1}},
        {"patternProperties": {"^[ab]+$": {"type": "null"}}, "additionalProperties": False},
    ],
)
def test_a_name_that_stands_twice_counts_once(name: str, names: Schema) -> None:
    with pytest.raises(GrammarError, match="#/(minProperties|patternProperties)"):
        backend_of(name).compile("json_schema", json.dumps({"type": "object", "minProperties": 2, **names}))


@both
@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"patternProperties": {"^foo$": {"maximum": 5}}, "properties": {"foo": {"type": "integer"}}}, ['{"foo":5}', "{}"], ['{"foo":6}', '{"bar":1}']),
        ({"patternProperties": {"^foo$": {"type": "null"}}, "required": ["foo"]}, ['{"foo":null}'], ['{"foo":1}', "{}"]),
        ({"patternProperties": {"^(?:width|height)$": {"type": "integer"}, "^[xy]$": {"type": "null"}}}, ['{"width":1,"y":null}'], ['{"x":1}', '{"z":1}']),
    ],
)  # fmt: skip
def test_patterns_of_a_few_names(name: str, schema: Schema, yes: list[str], no: list[str]) -> None:
    schema = {"type": "object", "additionalProperties": False, **schema}
    try:
        state = backend_of(name).compile("json_schema", json.dumps(schema))
    except GrammarError as error:
        assert name == "xgrammar" and "allOf" in str(error)
        return
    for text in yes:
        assert ends_after(state.copy(), text), text
    for text in no:
        assert not ends_after(state.copy(), text), text
    for seed in range(5):  # no dead end
        assert walk(state.copy(), random.Random(seed)) is not None


def test_very_many_optional_properties() -> None:
    kinds: list[Schema] = [{"type": "integer"}, {"type": "boolean"}, {"enum": ["x", "yy"]}, {"type": "string", "maxLength": 3}]
    wide = {"type": "object", "properties": {f"p.{i}": kinds[i % 4] for i in range(1500)}, "required": ["p.2"]}
    state = backend_of("llguidance").compile("json_schema", json.dumps(shape(["name"], name=NAME, wide=wide)))
    assert ends_after(state.copy(), '{"name":"n","wide":{"p.2":"yy","p.1499":"abc","p.0":-3,"p.1":true}}')
    for text in ('{"p.2":"x","p.1499":1', '{"p.0":1', '{"p.2":"x","p.1500":', '{"p.2":"x","px1"'):
        assert not state.copy().accept_all(list(f'{{"name":"n","wide":{text}'.encode())), text
    assert walk(state, random.Random(1), 30_000) is not None


# --- what clients may choose, and what they may send --------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    "chosen",
    [{"lenient": True}, {"coerce_one_of": True}, {"item_separator": ";"}, {"key_separator": "="}, {"json_allowed_escapes": "u"},
     {"whitespace_pattern": "x"}, {"whitespace_pattern": ".*"}, {"whitespace_pattern": r"\s*"}, {"whitespace_flexible": "yes"}, 3],
)  # fmt: skip
def test_no_schema_switches_leniency_on(name: str, chosen: Any) -> None:
    schema = {"oneOf": [{"minimum": 1}, {"maximum": 2}], "x-guidance": chosen}
    with pytest.raises(GrammarError):
        backend_of(name).compile("json_schema", json.dumps(schema))
    with pytest.raises(GrammarError, match="x-guidance"):
        backend_of(name).compile("json_schema", json.dumps({"type": "array", "items": {"type": "null"}, "x-guidance": chosen}))


def test_a_schema_chooses_its_white_space() -> None:
    schema = {
        "type": "array",
        "items": {"type": "null"},
        "x-guidance": {"whitespace_pattern": r"[ \n]{0,2}", "whitespace_flexible": True},
    }
    state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
    assert ends_after(state.copy(), "[ null,\n null]") and not ends_after(state, "[   null]")


@both
def test_words_that_are_no_keywords_cost_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr("difflib.get_close_matches", lambda word, *rest, **more: compared.append(len(word)) or [])
    backend_of(name).compile("json_schema", json.dumps({"type": "null", "x" * 100_000: 1, "minimun": 3}))
    assert compared == [len("minimun")]


@both
@pytest.mark.parametrize("key", ["anyOf", "prefixItems", "properties", "required", "enum", "type", "pattern", "minimum"])
def test_what_stands_at_a_keyword_is_of_its_kind(name: str, key: str) -> None:
    with pytest.raises(GrammarError, match=f"json_schema: #/properties/a/{key} must be "):
        backend_of(name).compile(
            "json_schema", json.dumps(shape([], a={"type": "string", **{key: 7 if key != "minimum" else "7"}}))
        )


def test_an_identifier_beside_a_reference_counts_since_draft_2019() -> None:
    inner = {"$id": "http://h/sub/", "$ref": "foo.json"}
    parts = {"one": {"$id": "foo.json", "type": "string"}, "two": {"$id": "sub/foo.json", "type": "integer"}}
    for draft, right, wrong in (
        ("http://json-schema.org/draft-07/schema#", '"x"', "1"),
        ("https://json-schema.org/draft/2020-12/schema", "1", '"x"'),
    ):
        schema = {"$schema": draft, "$id": "http://h/", "type": "array", "items": inner, "definitions": parts}
        state = backend_of("llguidance").compile("json_schema", json.dumps(schema))
        assert ends_after(state.copy(), f"[{right}]") and not ends_after(state, f"[{wrong}]")


@both
def test_strings_hold_no_halves_of_surrogate_pairs(name: str) -> None:
    """They are no UTF-8, however the tokens cut them."""
    backend = backend_of(name)
    state = backend.compile("json_schema", '{"type": "string"}')
    masks = np.zeros((1, backend.num_words), dtype=np.uint32)
    assert state.accept_all(list(b'"\xed'))
    fills = [state.fill_mask, lambda out: backend.fill_masks([state], masks), state.copy().fill_mask]
    for fill in fills:
        fill(masks[0])
        allowed = {i for i in range(256) if masks[0, i // 32] >> (i % 32) & 1}
        assert allowed & set(range(0x80, 0xC0)) == set(range(0x80, 0xA0))
    assert state.accept_all(list(b"\x95\x98a")) and state.rollback(3)
    state.fill_mask(masks[0])
    assert not masks[0, 0xA0 // 32] >> (0xA0 % 32) & 1, "as before"
    assert state.accept_all(list(b'\x95\x98"'))


@both
def test_objects_are_compared_as_they_were_written(name: str) -> None:
    """What is closed only because an engine needs it, or is counted by names, is open where branches are compared."""
    for more in ({"additionalProperties": True}, {"additionalProperties": {"type": "string"}}, {"minProperties": 1}, {}):
        branches = [{**shape(["a"], a=NAME), **more}, {**shape(["a", "b"], a=NAME, b=MAIL), **more}]
        schema = {"oneOf": branches}
        try:
            state = backend_of(name).compile("json_schema", json.dumps(schema))
        except GrammarError:
            continue
        assert not ends_after(state.copy(), '{"a":"x","b":"y"}'), more
    two = {"oneOf": [{**shape([], a=NAME, b=NAME, c=NAME), "minProperties": 2}, shape(["x", "y"], x=NAME, y=NAME)]}
    try:
        state = backend_of(name).compile("json_schema", json.dumps(two))
    except GrammarError:
        return
    assert not ends_after(state.copy(), '{"x":"","y":""}')
