"""Tools of a chat request: their description in the prompt, and the constraint on the answer.

tool_choice auto              free; with `strict` tools, calls follow their schemas (structural tags)
auto with response_format     either the format or calls: one JSON schema for both
required, or a named tool     nothing but a call, whatever response_format says: a JSON schema; required with
                              parallel_tool_calls true: a list of calls
none, or no tools             the prompt has none
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.json_drafts import draft_of, identifier_key, open_to_keywords
from sglang.srt.sampling_params import CONSTRAINTS, SamplingParams
from sglang.srt.server.fields import check_members
from sglang.srt.server.http.request_scope import new_name
from sglang.srt.server.limits.json_limits import read_json_text
from sglang.srt.server.openai.tool_schemas import check_tool_schema, refers_outside
from sglang.srt.server.parsers.pieces import Parser
from sglang.srt.server.parsers.tool_calls import Tag, call_format, create_free_parser, create_parser, create_whole_parser

MAX_TOOLS = 512
MAX_FORCED_CALLS = 16
"""calls in an answer that must consist of calls"""
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_TOOL_KEYS = frozenset({"type", "function"})
_FUNCTION_KEYS = frozenset({"name", "description", "parameters", "strict"})
_HINTS = frozenset({"cache_control", "defer_loading", "eager_input_streaming", "input_examples", "allowed_callers"})
"""what clients add to tools for other servers; the model is not told"""
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_GENERIC = "generic"
ANSWER = "(answer)"
"""among the definitions of tools, whose names it cannot be"""


class ToolPlan(msgspec.Struct, frozen=True, eq=False):
    """`shown`: the tools that the model is told of. `parser`: the format in which calls are looked for; None: nowhere. `strict`: tools
    whose calls count only if they are written as the constraint has it. `is_free`: an answer may be anything besides. `is_json`: an
    answer is either calls, or JSON of another kind."""

    shown: list[dict[str, Any]] = []  # each its own: msgspec copies it
    parser: str | None = None
    max_calls: int | None = None
    sampling: SamplingParams = SamplingParams()
    strict: tuple[str, ...] = ()
    is_free: bool = False
    is_json: bool = False

    def new_parser(self) -> Parser | None:
        """One that looks for calls in an answer; None where there can be none."""
        if self.parser is None:
            return None
        tools = parameters_of(self.shown)
        if self.is_json:
            return create_whole_parser(tools, self.max_calls)
        if self.is_free:
            return create_free_parser(self.parser, tools, self.max_calls, self.strict)
        return create_parser(self.parser, tools, self.max_calls)


def parameters_of(tools: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The parameters of each tool, in the order of its schema: by their names what they must be."""
    functions = [tool["function"] for tool in tools]
    return {function["name"]: function.get("parameters", {}).get("properties", {}) for function in functions}


def plan_tools(
    tools: Any,
    choice: Any,
    parallel: bool | None,
    format_name: str,
    sampling: SamplingParams,
    has_format: bool = False,
) -> ToolPlan:
    """Plans a request's `tools`, `tool_choice` and `parallel_tool_calls` for a model that calls in the format `format_name`.
    `has_format`: the constraint of `sampling` is that of response_format, which a forced call replaces. The plan's `sampling`
    holds the constraint. Raises RequestError."""
    known = parse_tools(tools)
    mode, shown = _choose(choice, known)
    if mode == "none" or not shown:
        return ToolPlan(sampling=sampling)
    max_calls = 1 if parallel is False or mode == "named" else None
    if mode == "auto":
        return _plan_auto(shown, max_calls, format_name, sampling)
    if has_format:
        sampling = _constrain(sampling)
    if sampling.grammar is not None:
        raise RequestError(f"{sampling.grammar[0]} cannot be combined with a tool_choice that asks for a call", "tool_choice")
    # asked for a call, one is enough; small models that may write a list of them find no end
    schema, definitions = _calls_schema(shown, max_calls if parallel else 1)
    text = json.dumps({**schema, "$defs": definitions})
    constrained = _constrain(sampling, json_schema=text, json_schema_strict=_strictness(shown))
    return ToolPlan(shown, _GENERIC, max_calls, constrained)


def _plan_auto(shown: list[dict[str, Any]], max_calls: int | None, format_name: str, sampling: SamplingParams) -> ToolPlan:
    if sampling.grammar is not None:
        return ToolPlan(shown, _GENERIC, max_calls, _either(shown, max_calls, sampling), is_json=True)
    strict = tuple(tool["function"]["name"] for tool in shown if tool["function"].get("strict"))
    if not strict:
        return ToolPlan(shown, format_name, max_calls, sampling, is_free=True)
    format_name = call_format(format_name).constrained_as or format_name
    tag = call_format(format_name).tag
    # calls that are Python bear their name in the trigger: of tools that are not strict nothing is asked
    bound = [tool for tool in shown if tool["function"].get("strict") or not tag.keywords]
    structures = [_structure(tool["function"], tag) for tool in bound]
    triggers = list(dict.fromkeys(tag.trigger.replace("NAME", tool["function"]["name"]) for tool in bound))
    text = json.dumps({"structures": structures, "triggers": triggers})
    constrained = _constrain(sampling, structural_tag=text)
    return ToolPlan(shown, format_name, max_calls, constrained, is_free=True, strict=strict)


def _constrain(sampling: SamplingParams, **constraint: Any) -> SamplingParams:
    """Sets this constraint alone."""
    return msgspec.structs.replace(sampling, **(dict.fromkeys(CONSTRAINTS) | constraint))


def _structure(function: dict[str, Any], tag: Tag) -> dict[str, Any]:
    schema = function.get("parameters", {"type": "object", "properties": {}}) if function.get("strict") else _ANY_OBJECT
    structure = {"begin": tag.begin.replace("NAME", function["name"]), "schema": schema, "end": tag.end}
    return {**structure, "keywords": True} if tag.keywords else structure


# --- schemas ----------------------------------------------------------------------------------------------------------------


def _calls_schema(shown: list[dict[str, Any]], max_calls: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema for one call, or for a list of them, and the definitions it refers to."""
    definitions: dict[str, Any] = {}
    calls = []
    for i, tool in enumerate(shown):
        function = tool["function"]
        name = function["name"]
        parameters = function.get("parameters", {"type": "object", "properties": {}})
        if not function.get("strict") and refers_outside(parameters):  # as unconstrained as with tool_choice auto
            parameters = _ANY_OBJECT
        definitions[name] = _apart(parameters, f"tool{i}", definitions)
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": {"$ref": f"#/$defs/{name}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    call = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if max_calls == 1:
        return call, definitions
    return {"type": "array", "items": call, "minItems": 1, "maxItems": MAX_FORCED_CALLS}, definitions


def _either(shown: list[dict[str, Any]], max_calls: int | None, sampling: SamplingParams) -> SamplingParams:
    """The response format, or calls."""
    assert sampling.grammar is not None
    kind, text = sampling.grammar
    if kind != "json_schema":
        raise UnsupportedError(f"{kind} cannot be combined with tools that may be called; set tool_choice to none", "tools")
    schema, definitions = _calls_schema(shown, max_calls)
    definitions[ANSWER] = _apart(read_json_text(text, "json_schema"), "answer", definitions)
    union = {"anyOf": [{"$ref": f"#/$defs/{ANSWER}"}, schema], "$defs": definitions}
    strict = _strictness(shown)
    if sampling.json_schema_strict is True:
        strict[f"#/$defs/{ANSWER}"] = True
    return _constrain(sampling, json_schema=json.dumps(union), json_schema_strict=strict)


def _strictness(shown: list[dict[str, Any]]) -> dict[str, bool]:
    """Each tool is followed as it wants to be, whatever stands beside it."""
    return {f"#/$defs/{tool['function']['name']}": bool(tool["function"].get("strict")) for tool in shown}


def _apart(schema: Any, name: str, others: dict[str, Any]) -> Any:
    """A schema as its own resource, so that its references to itself are right wherever it stands."""
    if not isinstance(schema, dict):
        return schema
    key = identifier_key(draft_of(schema))
    schema = open_to_keywords(schema)
    taken = {other.get("$id") for other in others.values() if isinstance(other, dict)}
    own = schema.get(key)
    if isinstance(own, str) and own not in taken:
        name = own
    while name in taken:
        name += "_"
    return {**schema, key: name, "$id": name}  # both: who looks from outside goes by the newest


# --- what clients send ------------------------------------------------------------------------------------------------------


def parse_tools(raw: Any) -> list[dict[str, Any]]:
    """A checked list of {"type": "function", "function": {"name", "description"?, "parameters"?, "strict"?}}. Raises
    RequestError."""
    tools = [] if raw is None else raw
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise RequestError(f"tools must be a list of at most {MAX_TOOLS} tools", "tools")
    checked = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    seen: set[str] = set()
    for tool in checked:
        name = tool["function"]["name"]
        if name in seen:
            raise RequestError(f"two tools have the name {name!r}", "tools")
        seen.add(name)
    return checked


def _tool(raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict) or raw.get("type") != "function" or not isinstance(raw.get("function"), dict):
        raise RequestError(
            f'{where} must be {{"type": "function", "function": {{...}}}}; other types are not supported', "tools"
        )
    function = raw["function"]
    for keys, known, place in ((raw, _TOOL_KEYS, where), (function, _FUNCTION_KEYS, f"{where}.function")):
        for key in keys:
            if key not in known and key not in _HINTS:
                raise RequestError(f"{place} has an unknown key {key[:100]!r}", "tools")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where}.function.name must consist of up to 128 letters, digits, _, . and -", "tools")
    kinds = (("description", str), ("parameters", dict), ("strict", bool))
    for key, kind in kinds:
        if function.get(key) is not None and not isinstance(function[key], kind):
            raise RequestError(f"{where}.function.{key} has the wrong type", "tools")
    if function.get("parameters") is not None:
        check_tool_schema(function["parameters"], f"the parameters of the tool {name!r}")
    told = {key: function[key] for key in function if key in _FUNCTION_KEYS and function[key] is not None}
    return {"type": "function", "function": told}


def _choose(choice: Any, tools: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """(none, auto, required or named; the tools that may be called)"""
    if choice is None:
        return "auto", tools
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise RequestError(
                f"tool_choice must be none, auto, required or a named function, got {choice[:50]!r}", "tool_choice"
            )
        if choice == "required" and not tools:
            raise RequestError("tool_choice is required, but there are no tools", "tool_choice")
        return choice, tools
    kind = choice.get("type") if isinstance(choice, dict) else None
    if kind == "function":
        return "named", [_named(choice, tools)]
    if kind == "allowed_tools" and isinstance(choice.get("allowed_tools"), dict):
        allowed = choice["allowed_tools"]
        check_members(choice, ("type", "allowed_tools"), "tool_choice", "tool_choice")
        check_members(allowed, ("mode", "tools"), "tool_choice.allowed_tools", "tool_choice")
        entries = allowed.get("tools")
        if allowed.get("mode") in ("auto", "required") and isinstance(entries, list) and 0 < len(entries) <= MAX_TOOLS:
            chosen = {_named(entry, tools)["function"]["name"] for entry in entries}
            return allowed["mode"], [tool for tool in tools if tool["function"]["name"] in chosen]
    raise RequestError('tool_choice must be a word or {"type": "function", "function": {"name": ...}}', "tool_choice")


def _named(entry: Any, tools: list[dict[str, Any]]) -> dict[str, Any]:
    function = entry.get("function", entry) if isinstance(entry, dict) else None
    if isinstance(function, dict):
        check_members(entry, ("type", "function", "name"), "tool_choice", "tool_choice")
        check_members(function, ("name",) if function is not entry else ("type", "name"), "tool_choice", "tool_choice")
    name = function.get("name") if isinstance(function, dict) else None
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool
    shown = repr(name[:100]) if isinstance(name, str) else "without a name"
    raise RequestError(f"tool_choice names a function {shown}, which is not among the tools", "tool_choice")


def call_id(format_name: str) -> str:
    """A new name for a call. Mistral's templates take nine letters and digits only."""
    return new_name()[:9] if format_name == "mistral" else f"call_{new_name()[:24]}"


# --- models without a tool template -----------------------------------------------------------------------------------------


def tell_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a template that knows no calls: earlier ones are the assistant's text, results are the user's."""
    called = {
        entry["id"]: entry["function"]["name"]
        for message in reversed(messages)
        for entry in message.get("tool_calls") or ()
        if isinstance(entry.get("id"), str)
    }
    return [_told(message, called) for message in messages]


def tell_tools(messages: list[dict[str, Any]], tools: list[dict[str, Any]], how: str) -> list[dict[str, Any]]:
    """Messages for a template that knows no tools: they are described in the system message."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = (
        "You can call functions. These are the functions, each as JSON:\n"
        + "\n".join(lines)
        + f"\nTo call a function, answer with nothing but this form:\n{how}\nOtherwise answer with plain text."
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": _joined(messages[0]["content"], text)}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _joined(content: Any, text: str) -> Any:
    if isinstance(content, list):
        return [*content, {"type": "text", "text": f"\n\n{text}"}]
    return f"{content}\n\n{text}"


def _told(message: dict[str, Any], called: dict[str, str]) -> dict[str, Any]:
    content = message["content"]
    if message["role"] in ("tool", "function"):
        name = message.get("name") or called.get(message.get("tool_call_id", ""), "the function")
        return {"role": "user", "content": _result(f"Result of {name}:\n", content)}
    calls = message.get("tool_calls")
    if not calls:
        return message
    written = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
    text = written[0] if len(written) == 1 else f"[{', '.join(written)}]"
    joined = _joined(content, text) if content else text
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": joined}


def _result(title: str, content: Any) -> Any:
    """Text as one string; with images among it, parts."""
    if not isinstance(content, list):
        return title + content
    if all(part["type"] == "text" for part in content):
        return title + "".join(part["text"] for part in content)
    return [{"type": "text", "text": title}, *content]
