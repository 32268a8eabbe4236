"""White space in constrained JSON: what models were trained on may be written, and nothing without end."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sglang.srt.config import GrammarOptions
from sglang.srt.errors import ConfigError, GrammarError, RequestError
from sglang.srt.json_style import JsonStyle, split_style, with_style
from sglang.srt.sampling_params import parse_sampling_params
from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
from sglang.srt.scheduler.grammar.schema.layout import MAX_LEVELS, checked_whitespace, default_whitespace, num_levels
from tests.scheduler.test_backends import backend_of, both, ends_after
from tests.scheduler.toy import VOCABULARY

FRUITS: dict[str, Any] = {
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"type": "string"}}, "count": {"type": "integer"}},
    "required": ["items", "count"],
}
VALUE = {"items": ["apple", "pear"], "count": 2}
LAYOUTS: list[dict[str, Any]] = [{}, {"indent": 2}, {"indent": 4}, {"indent": "\t"}, {"separators": (",", ":")}]


def takes(name: str, text: str, schema: Any = FRUITS, style: JsonStyle = JsonStyle(), kind: str = "json_schema") -> bool:  # noqa: B008
    return ends_after(backend_of(name).compile(kind, with_style(json.dumps(schema), style)), text)


@both
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_layouts_may_be_written(name: str, layout: dict[str, Any]) -> None:
    assert takes(name, json.dumps(VALUE, **layout))


@both
@pytest.mark.parametrize("gap", [" " * 10, "\n" * 10, "\n" + " " * 20, "\n" + "\t" * 20])
def test_no_white_space_without_end(name: str, gap: str) -> None:
    text = json.dumps(VALUE)
    for place in ("{", ":", ",", "[", "]"):
        assert not takes(name, text.replace(place, place + gap, 1)), place
    assert not takes(name, gap + text) and not takes(name, text + gap)


def test_a_gap_is_a_blank_or_one_line_break() -> None:
    assert not takes("llguidance", '{\n\n"items": [], "count": 0}')
    assert not takes("llguidance", '{"items":  [], "count": 0}')
    assert not takes("llguidance", '{ \n"items": [], "count": 0}')


@both
def test_a_request_chooses_its_white_space(name: str) -> None:
    compact, any_space = JsonStyle(whitespace=""), JsonStyle(whitespace=r"[ \n\t]*")
    assert takes(name, '{"items":[],"count":0}', style=compact)
    assert not takes(name, '{"items": [],"count":0}', style=compact)
    assert takes(name, '{\n\n\n"items":   [],"count":0}', style=any_space)


def test_the_servers_pattern_counts_where_a_request_has_none() -> None:
    backend = LLGuidanceBackend(VOCABULARY, GrammarOptions(whitespace_pattern=""))
    schema = json.dumps(FRUITS)
    assert not ends_after(backend.compile("json_schema", schema), '{"items": [],"count":0}')
    chosen = with_style(schema, JsonStyle(whitespace=" ?"))
    assert ends_after(backend.compile("json_schema", chosen), '{"items": [],"count":0}')


def test_schemas_inside_other_grammars_have_the_same_white_space() -> None:
    lark = "start: /x=/ value\nvalue: %json " + json.dumps(FRUITS)
    tags = {"structures": [{"begin": "<f>", "schema": FRUITS, "end": "</f>"}], "triggers": ["<f>"]}
    backend = backend_of("llguidance")
    for text, good in ((json.dumps(VALUE), True), (json.dumps(VALUE, indent=2), True), ('{\n\n\n"items":[],"count":0}', False)):
        assert ends_after(backend.compile("ebnf", lark), f"x={text}") is good
        state = backend.compile("structural_tag", json.dumps(tags))
        assert state.accept_all(list(f"<f>{text}</f>".encode())) is good
    compact = backend.compile("ebnf", with_style(lark, JsonStyle(whitespace="")))
    assert not compact.accept_all(list(b'x={"items": '))


@pytest.mark.parametrize("mark", ["", "?", "!"])
def test_lark_is_known_by_its_first_rule(mark: str) -> None:
    """With or without a mark for trees."""
    backend = backend_of("llguidance")
    state = backend.compile("ebnf", f'{mark}start: "hello" | "good" WORD\nWORD: /[a-z]{{2,5}}/\n')
    assert state.accept_all(list(b"goodbye")) and not state.accept_all(list(b"1"))


@pytest.mark.parametrize("pattern", ["[a-z]", ".", r"\w*", "^ ", " |x", r"\x41", r"[^ ]", r"[\s\S]", "\x0b", "(", "[ ", "{3}"])
def test_only_white_space_of_json(pattern: str) -> None:
    with pytest.raises(GrammarError, match="constrained_json_whitespace_pattern"):
        backend_of("llguidance").compile("json_schema", with_style("{}", JsonStyle(whitespace=pattern)))


def test_a_servers_pattern_is_looked_at_when_it_starts() -> None:
    with pytest.raises(ConfigError, match="constrained_json_whitespace_pattern"):
        LLGuidanceBackend(VOCABULARY, GrammarOptions(whitespace_pattern="[a-z]"))


def test_an_s_means_the_white_space_of_json() -> None:
    assert checked_whitespace(r"\s?|[\s]+") == r"[ \t\n\r]?|[ \t\n\r]+"
    assert takes("llguidance", '{\r"items":[],"count":0}', style=JsonStyle(whitespace=r"\s?"))
    assert not takes("llguidance", '{\u00a0"items":[],"count":0}', style=JsonStyle(whitespace=r"\s?"))


N = {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "levels"),
    [
        ({"type": "integer"}, 0),
        ({"enum": [1, "a"]}, 0),
        ({"enum": [[1]]}, 1),
        ({"type": "object", "properties": {}, "additionalProperties": False}, 1),
        ({"type": "array", "items": {"type": "array", "items": {"type": "null"}}}, 2),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/0"}}, "additionalProperties": False,
          "$defs": {"0": {"type": "array", "items": {"type": "string"}}}}, 2),
        ({"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "string"}}]}, 1),
        ({"type": "array", "items": {"$ref": "#"}}, MAX_LEVELS),
        ({}, MAX_LEVELS),
        ({"type": "array"}, MAX_LEVELS),
        ({"type": "object"}, MAX_LEVELS),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, MAX_LEVELS),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}], "type": "object", "properties": {"a": N, "b": N}, "additionalProperties": False}, 1),
        ({"oneOf": [{"required": ["a"]}, {"minProperties": 2}], "type": "object", "additionalProperties": {"type": "array", "items": N}}, 2),
        ({"type": "object", "properties": {"a": N}, "anyOf": [
            {"properties": {"a": True, "b": N}, "additionalProperties": False},
            {"properties": {"a": True, "c": {"type": "array", "items": N}}, "additionalProperties": False}]}, 2),
        ({"allOf": [{"$ref": "#/$defs/0"}], "properties": {"a": True, "b": N}, "additionalProperties": False,
          "$defs": {"0": {"type": "object", "properties": {"a": N}}}}, 1),
        ({"type": ["string", "null"], "anyOf": [{"minLength": 3}, {"pattern": "^a"}]}, 0),
        ({"anyOf": [{"$ref": "#"}, {"type": "integer"}]}, MAX_LEVELS),
        ({"allOf": [{"anyOf": [{"type": "array", "items": N}, {"type": "null"}]}] * 30}, 1),
        ({"$ref": "#/$defs/0", "$defs": {str(i): {"$ref": f"#/$defs/{i + 1}"} for i in range(2000)}}, MAX_LEVELS),
    ],
)  # fmt: skip
def test_the_levels_of_a_schema(schema: dict[str, Any], levels: int) -> None:
    assert num_levels(schema) == levels
    assert default_whitespace({"type": "integer"}) == " "


def test_the_field_of_a_request_and_its_text() -> None:
    params = parse_sampling_params({"json_schema": "{}", "constrained_json_whitespace_pattern": ""})
    assert params.styled_grammar is not None and params.grammar == ("json_schema", "{}")
    style, text = split_style(params.styled_grammar[1])
    assert (style, text) == (JsonStyle(whitespace="", check=True), "{}")
    strict = parse_sampling_params({"json_schema": "{}", "json_schema_strict": True})
    assert strict.styled_grammar == ("json_schema", "{}")
    for bad in ("x" * 1000, "\u00a0", "\ud800"):
        with pytest.raises(RequestError, match="whitespace_pattern"):
            parse_sampling_params({"json_schema": "{}", "constrained_json_whitespace_pattern": bad})


def test_a_style_that_is_none() -> None:
    with pytest.raises(GrammarError, match="style"):
        backend_of("llguidance").compile("json_schema", '\x1e{"lenient":true}\n{}')
