"""Tool calling: descriptions of Python functions for the prompt, the schema of calls, and the calls themselves.

`gen("call", tools=[f, g])` lets the model write a JSON list of calls; `s.value("call")` gives them, `s.call_tools("call")` makes
them. It needs nothing of the model but JSON: the same program runs on every backend.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sglang.lang.typed.output import TypedOutput

Tool = Callable[..., Any]
MAX_CALLS = 8


@dataclass(frozen=True)
class ToolCall:
    """One call that the model asks for, with checked arguments."""

    function: Tool
    name: str
    arguments: dict[str, Any]

    def run(self) -> ToolResult:
        """Calls the function. What it raises becomes the result's `error`: the model is to hear of it."""
        if inspect.iscoroutinefunction(self.function):
            return asyncio.run(self.arun())
        try:
            return ToolResult(self, self.function(**self.arguments))
        except Exception as error:  # noqa: BLE001 - any function of the user's may raise anything
            return ToolResult(self, None, error)

    async def arun(self) -> ToolResult:
        """The same for a coroutine function; others run on a thread."""
        if not inspect.iscoroutinefunction(self.function):
            return await asyncio.to_thread(self.run)
        try:
            return ToolResult(self, await self.function(**self.arguments))
        except Exception as error:  # noqa: BLE001 - as above
            return ToolResult(self, None, error)


@dataclass(frozen=True)
class ToolResult:
    """The result of a tool call. `str()` of it is a line for the prompt."""

    call: ToolCall
    value: Any
    error: BaseException | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.call.name} failed: {type(self.error).__name__}: {self.error}"
        return f"{self.call.name} returned {json.dumps(self.value, ensure_ascii=False, default=str)}"


@dataclass(frozen=True)
class ToolSpec:
    """A function as a model sees it."""

    function: Tool
    name: str
    description: str
    model: Any
    """the pydantic model of its arguments"""

    @property
    def parameters(self) -> dict[str, Any]:
        schema: dict[str, Any] = self.model.model_json_schema()
        schema.pop("title", None)
        return schema


def tool_spec(function: Tool) -> ToolSpec:
    """Reads signature and docstring ("name: what it is" lines under "Args:"). Raises TypeError for parameters that a model
    cannot give by name."""
    import pydantic

    hints = typing.get_type_hints(function)
    text = inspect.getdoc(function) or ""
    described = dict(re.findall(r"^[ \t]+(\w+)[ \t]*(?:\([^)]*\))?:[ \t]*(\S.*)$", text, re.MULTILINE))
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"a tool's parameters must have names: {function.__name__} has {parameter}")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (hints.get(name, str), pydantic.Field(default, description=described.get(name)))
    config = pydantic.ConfigDict(extra="forbid")
    model = pydantic.create_model(function.__name__, __config__=config, **fields)
    return ToolSpec(function, function.__name__, text.split("\n\n")[0].replace("\n", " ").strip(), model)


def describe_tools(tools: Sequence[Tool]) -> str:
    """A paragraph for the system message: which functions there are and how to call them."""
    lines = ["You can call these functions:"]
    for spec in map(tool_spec, tools):
        lines.append(json.dumps({"name": spec.name, "description": spec.description, "parameters": spec.parameters}))
    lines.append('To call functions, answer with a JSON list: [{"name": "...", "arguments": {...}}, ...]')
    return "\n".join(lines)


def tool_output(tools: Sequence[Tool], max_retries: int = 2) -> TypedOutput:
    """The type "list of calls of these functions". Raises ValueError without functions or with two of one name."""
    specs = {spec.name: spec for spec in map(tool_spec, tools)}
    if not specs or len(specs) < len(tools):
        raise ValueError("tools must be functions of different names")
    definitions: dict[str, Any] = {}
    items = []
    for spec in specs.values():
        parameters = spec.parameters
        definitions |= parameters.pop("$defs", {})
        properties = {"name": {"const": spec.name}, "arguments": parameters}
        items.append(
            {"type": "object", "properties": properties, "required": ["name", "arguments"], "additionalProperties": False}
        )
    schema: dict[str, Any] = {"type": "array", "items": {"anyOf": items}, "minItems": 1, "maxItems": MAX_CALLS}
    if definitions:
        schema["$defs"] = definitions

    def parse(text: str) -> list[ToolCall]:
        calls = json.loads(text)
        if not isinstance(calls, list):
            raise ValueError("not a list of calls")
        return [_checked(specs, call) for call in calls]

    return TypedOutput(("json_schema", json.dumps(schema)), parse, describe_tools(tools), max_retries=max_retries)


def _checked(specs: dict[str, ToolSpec], call: Any) -> ToolCall:
    """Raises ValueError (pydantic's is one) for an unknown function or wrong arguments."""
    if not isinstance(call, dict) or call.get("name") not in specs:
        raise ValueError(f"not a call of {', '.join(specs)}: {call!r}")
    spec = specs[call["name"]]
    values = spec.model.model_validate(call.get("arguments") or {})
    return ToolCall(spec.function, spec.name, {name: getattr(values, name) for name in spec.model.model_fields})
