"""Tools as frameworks send them, where a call is required: schemas with identifiers, and one that cannot be followed among many."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.schema_suite import BYTES, END
from sglang.srt.config import GrammarOptions
from sglang.srt.errors import GrammarError
from sglang.srt.sampling_params import SamplingParams
from sglang.srt.scheduler.grammar.engines.base import GrammarState
from sglang.srt.scheduler.grammar.engines.llguidance_backend import LLGuidanceBackend
from sglang.srt.server.openai.tools import plan_tools
from sglang.srt.server.schema_check_work import check

BACKEND = LLGuidanceBackend(BYTES, GrammarOptions())
POINT = {"type": "object", "properties": {"x": {"$ref": "#/$defs/n"}}, "required": ["x"], "$defs": {"n": {"type": "integer"}}}
PLAIN = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def sampling_of(*tools: dict[str, Any], **sampling: Any) -> SamplingParams:
    choice = "auto" if sampling else "required"
    return plan_tools(list(tools), choice, None, "generic", SamplingParams(**sampling)).sampling


def state_of(sampling: SamplingParams) -> GrammarState:
    assert sampling.styled_grammar is not None
    return BACKEND.compile(*sampling.styled_grammar).copy()


def takes(sampling: SamplingParams, value: Any) -> bool:
    return state_of(sampling).accept_all([*json.dumps(value).encode(), END])


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


@pytest.mark.parametrize("own", [{}, {"$id": "https://example.com/point.json"}, {"$id": "point"}, {"$id": "tool1"}])
def test_references_of_a_tool_lead_within_it(own: dict[str, str]) -> None:
    texts = {**POINT, **own, "$defs": {"n": {"type": "string"}}}
    sampling = sampling_of(tool("ints", {**POINT, **own}), tool("texts", texts))
    assert takes(sampling, call("ints", x=1)) and not takes(sampling, call("ints", x="a"))
    assert takes(sampling, call("texts", x="a")) and not takes(sampling, call("texts", x=1))
    assert sampling.json_schema is not None
    assert check(json.loads(sampling.json_schema), json.dumps(call("ints", x=1))).error is None
    assert check(json.loads(sampling.json_schema), json.dumps(call("texts", x=1))).error is not None


def test_values_that_look_like_references_stay_as_they_are() -> None:
    schema = {
        "type": "object",
        "properties": {"$ref": {"const": "#/a"}, "b": {"enum": [{"$ref": "#/x"}]}},
        "required": ["$ref", "b"],
    }
    assert takes(sampling_of(tool("f", schema)), call("f", **{"$ref": "#/a", "b": {"$ref": "#/x"}}))


def test_an_answer_beside_tools_keeps_its_references() -> None:
    sampling = sampling_of(tool("f", POINT), json_schema=json.dumps({**POINT, "$defs": {"n": {"type": "boolean"}}}))
    assert takes(sampling, {"x": True}) and not takes(sampling, {"x": 1}) and takes(sampling, [call("f", x=1)])


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "unique items": {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}}},
    "not": {"type": "object", "properties": {"x": {"type": "string", "not": {"pattern": "a"}}}},
    "another document": {"type": "object", "properties": {"x": {"$ref": "https://example.com/elsewhere.json#/x"}}},
    "look-ahead": {"type": "object", "properties": {"x": {"type": "string", "pattern": "^(?!a)"}}},
    "a condition": {"type": "object", "properties": {"x": {"type": "string"}}, "if": {"minProperties": 1}, "then": {"required": ["x"]}},
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_one_tool_that_cannot_be_followed_refuses_no_call(case: str) -> None:
    tools = [tool("a", PLAIN), tool("odd", UNSUPPORTED[case]), tool("b", POINT)]
    sampling = sampling_of(*tools)
    for good in (call("a", a="x"), call("b", x=1), call("odd")):
        assert takes(sampling, good)
    for bad in (call("a", a=1), call("b", x="1"), call("c")):
        assert not takes(sampling, bad)
    assert bool(state_of(sampling).unenforced) == (case != "another document")


def test_strict_tools_are_followed_or_refused() -> None:
    with pytest.raises(GrammarError, match="uniqueItems"):
        state_of(sampling_of(tool("odd", UNSUPPORTED["unique items"], strict=True)))


UNIQUE = UNSUPPORTED["unique items"]
FAULTS: dict[str, dict[str, Any]] = {
    "an engine's complaint": {"type": "object", "properties": {"x": {"type": "string", "pattern": r"\p{Nothing}"}}},
    "patterns that overlap": {"type": "object", "patternProperties": {"^b": {"type": "integer"}, "^(?!a)": {"type": "string"}}},
    "a lost reference": {"type": "object", "properties": {"x": {"$ref": "#nowhere"}}},
}


@pytest.mark.parametrize("beside", ["calls", "a format"])
def test_each_tool_is_as_strict_as_it_says(beside: str) -> None:
    """A loose one that cannot be followed changes nothing for a strict one beside it, nor the other way round."""
    more = {"json_schema": json.dumps(PLAIN)} if beside == "a format" else {}
    wrap = (lambda value: [value]) if more else (lambda value: value)
    sampling = sampling_of(tool("odd", UNIQUE), tool("held", POINT, strict=True), **more)
    assert state_of(sampling).unenforced == ("#/$defs/odd/properties/x/uniqueItems",)
    assert takes(sampling, wrap(call("odd", x=["a"]))) and not takes(sampling, wrap(call("odd", x=[1])))
    assert takes(sampling, wrap(call("held", x=1))) and not takes(sampling, wrap(call("held", x="1")))
    with pytest.raises(GrammarError, match=r"#/\$defs/held/properties/x/uniqueItems"):
        state_of(sampling_of(tool("loose", POINT), tool("held", UNIQUE, strict=True), **more))


def test_a_strict_format_beside_loose_tools() -> None:
    text = json.dumps(UNIQUE)
    with pytest.raises(GrammarError, match=r"#/\$defs/\(answer\)/properties/x/uniqueItems"):
        state_of(sampling_of(tool("odd", UNIQUE), json_schema=text, json_schema_strict=True))
    strict = sampling_of(tool("odd", UNIQUE), json_schema=json.dumps(PLAIN), json_schema_strict=True)
    assert state_of(strict).unenforced == ("#/$defs/odd/properties/x/uniqueItems",)
    assert takes(strict, {"a": "x"}) and not takes(strict, {"a": 1})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_one_tool_loosens_that_one(fault: str) -> None:
    sampling = sampling_of(tool("a", PLAIN), tool("odd", FAULTS[fault]), tool("held", POINT, strict=True))
    for good in (call("a", a="x"), call("held", x=1), call("odd")):
        assert takes(sampling, good)
    for bad in (call("a", a=1), call("held", x="1"), {"name": "odd", "arguments": 3}):
        assert not takes(sampling, bad)
    assert all(path.startswith("#/$defs/odd") for path in state_of(sampling).unenforced)
    with pytest.raises(GrammarError, match=r"#/\$defs/odd"):
        state_of(sampling_of(tool("a", PLAIN), tool("odd", FAULTS[fault], strict=True), tool("b", POINT)))


@pytest.mark.parametrize("fault", ["an engine's complaint", "patterns that overlap", "a lost reference"])
def test_tags_name_the_tool_at_fault(fault: str) -> None:
    tools = [tool("a", PLAIN, strict=True), tool("odd", FAULTS[fault], strict=True), tool("free", FAULTS[fault])]
    sampling = plan_tools(tools, "auto", None, "generic", SamplingParams()).sampling
    with pytest.raises(GrammarError, match="structural_tag: the schema behind .*odd"):
        state_of(sampling)
    state_of(plan_tools([tools[0], tools[2]], "auto", None, "generic", SamplingParams()).sampling)


URIS = [f"http://json-schema.org/draft-0{n}/schema#" for n in (3, 4, 6, 7)]
URIS += [f"https://json-schema.org/draft/{name}/schema" for name in ("2019-09", "2020-12")]


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize("form", ["properties", "a reference", "a named reference"])
def test_tools_of_every_draft_keep_their_references(uri: str, form: str) -> None:
    body: dict[str, Any] = {"type": "object", "properties": {"x": {"$ref": "#/definitions/n"}}}
    definitions: dict[str, Any] = {"n": {"type": "integer"}}
    if form != "properties":
        definitions["B"], body = body, {"$ref": "#/definitions/B"}
    own = {"id" if uri in URIS[:2] else "$id": "http://h/s.json"} if form == "a named reference" else {}
    ints = {"$schema": uri, **own, **body, "definitions": definitions}
    texts = json.loads(json.dumps(ints).replace('"integer"', '"string"'))
    sampling = sampling_of(tool("ints", ints), tool("texts", texts))
    assert sampling.json_schema is not None and not state_of(sampling).unenforced
    for name, right, wrong in (("ints", 1, "a"), ("texts", "a", 1)):
        assert takes(sampling, call(name, x=right)) and not takes(sampling, call(name, x=wrong))
        assert check(json.loads(sampling.json_schema), json.dumps(call(name, x=right))).error is None
        verdict = check(json.loads(sampling.json_schema), json.dumps(call(name, x=wrong)))
        assert verdict.error is not None and verdict.error.startswith("$.arguments.x: ")
