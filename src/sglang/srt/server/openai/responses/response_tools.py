"""The tools of a Responses request. Functions are a chat's, also those inside namespaces; other tools run at OpenAI or have formats
of their own, and are left out with a line in the log: a model answers without them. One that `tool_choice` forces is refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import SHOWN, note_unknown
from sglang.srt.server.openai.protocol import note_members
from sglang.srt.server.openai.tools import parse_tools

_FUNCTION_KEYS = ("name", "description", "parameters", "strict")
_WORDS = ("none", "auto", "required")
_RUN_HERE = frozenset({"function", "namespace"})


@dataclass
class ResponseTools:
    """`functions`: as a chat has them. The model knows a function by its name alone; only where another has it already, by
    NAMESPACE__NAME. `left_out`: the types of the tools that are not there."""

    functions: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _shown: dict[tuple[str | None, str], str] = field(default_factory=dict)
    _meant: dict[str, tuple[str | None, str]] = field(default_factory=dict)

    def add(self, tool: dict[str, Any], namespace: str | None, where: str) -> None:
        """One function. Raises RequestError."""
        given = tool["function"] if isinstance(tool.get("function"), dict) else tool  # as a chat has it
        note_unknown({**tool, **given}, {"type", "function", *_FUNCTION_KEYS}, "key of a tool:")
        function = {key: given[key] for key in _FUNCTION_KEYS if given.get(key) is not None}
        try:
            parse_tools([{"type": "function", "function": function}])
        except RequestError as error:
            error.args = (str(error).replace("tools[0].function", where),)
            raise
        name = function["name"]
        if namespace is not None and name in self._meant:
            function["name"] = f"{namespace}__{name}"
        self._shown[namespace, name] = function["name"]
        self._meant[function["name"]] = namespace, name
        self.functions.append({"type": "function", "function": function})

    def shown(self, name: Any, namespace: Any) -> Any:
        """The name by which the model knows a function."""
        if not isinstance(name, str) or not isinstance(namespace, str | None):
            return name
        return self._shown.get((namespace, name), name)

    def meant(self, shown: str) -> tuple[str | None, str]:
        """Namespace and name of a function that the model calls."""
        return self._meant.get(shown, (None, shown))

    def chat_choice(self, choice: Any) -> Any:
        """`tool_choice` as a chat's. Raises RequestError, also for one that forces a tool that was left out."""
        kind = choice.get("type") if isinstance(choice, dict) else choice
        if kind in _WORDS:
            note_members(choice if isinstance(choice, dict) else {}, ("type",), "tool_choice", "tool_choice")
            if kind == "required" and not self.functions and self.left_out:
                self._refuse(self.left_out[0])
            return kind
        if not isinstance(choice, dict) or not isinstance(kind, str):
            raise RequestError('tool_choice must be none, auto, required or {"type": "function", "name": ...}', "tool_choice")
        if kind == "function":
            return self._named(choice)
        if kind == "allowed_tools":
            return self._allowed(choice)
        self._refuse(kind)

    def _named(self, choice: dict[str, Any]) -> dict[str, Any]:
        given = choice["function"] if isinstance(choice.get("function"), dict) else choice
        note_members({**choice, **given}, ("type", "function", "name", "namespace"), "tool_choice", "tool_choice")
        return {"type": "function", "function": {"name": self.shown(given.get("name"), given.get("namespace"))}}

    def _allowed(self, choice: dict[str, Any]) -> Any:
        allowed = choice["allowed_tools"] if isinstance(choice.get("allowed_tools"), dict) else choice
        note_members({**choice, **allowed}, ("type", "allowed_tools", "mode", "tools"), "tool_choice", "tool_choice")
        entries = allowed.get("tools")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise RequestError("tool_choice.tools must be a list of tools", "tool_choice")
        kept = [self._named(entry) for entry in entries if entry.get("type", "function") == "function"]
        if entries and not kept:
            if allowed.get("mode") == "required":
                self._refuse(str(entries[0].get("type")))
            return "none"
        return {"type": "allowed_tools", "allowed_tools": {"mode": allowed.get("mode"), "tools": kept}}

    def _refuse(self, kind: str) -> NoReturn:
        raise UnsupportedError(
            f"tool_choice forces a tool of the type {kind[:SHOWN]!r}; this server calls functions only", "tool_choice"
        )


ADDED = "additional_tools"
"""type of an item that brings tools"""


def read_tools(raw: Any, items: Iterable[Any] = ()) -> ResponseTools:
    """A request's tools, and those that items of its conversation add. Raises RequestError."""
    tools = ResponseTools()
    if raw is not None and not isinstance(raw, list):
        raise RequestError("tools must be a list", "tools")
    found = list(_flat(raw or [], "tools"))
    seen = {(namespace, str(tool.get("name"))) for tool, namespace, _ in found}
    for tool, namespace, where in _added(items):
        if (key := (namespace, str(tool.get("name")))) not in seen:
            seen.add(key)
            found.append((tool, namespace, where))
    # functions outside of namespaces keep their names
    for tool, namespace, where in sorted(found, key=lambda entry: entry[1] is not None):
        if tool["type"] == "function":
            tools.add(tool, namespace, where)
        else:
            note_unknown([tool["type"]], _RUN_HERE, "type of a tool, which is left out:")
            tools.left_out.append(tool["type"])
    return tools


def _added(items: Iterable[Any]) -> Iterator[tuple[dict[str, Any], str | None, str]]:
    for item in items:
        if isinstance(item, dict) and item.get("type") == ADDED:
            if not isinstance(item.get("tools"), list):
                raise RequestError(f"an item of type {ADDED} must have a list of tools", "input")
            yield from _flat(item["tools"], f"{ADDED}.tools")


def _flat(raw: list[Any], where: str, namespace: str | None = None) -> Iterator[tuple[dict[str, Any], str | None, str]]:
    """(tool, its namespace, its place)"""
    for i, tool in enumerate(raw):
        place = f"{where}[{i}]"
        if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
            raise RequestError(f'{place} must be an object with a type, like {{"type": "function", "name": ...}}', "tools")
        if tool["type"] == "namespace" and namespace is None:
            if not isinstance(tool.get("name"), str) or not isinstance(tool.get("tools"), list):
                raise RequestError(f"{place} is a namespace and must have a name and tools", "tools")
            note_unknown(tool, {"type", "name", "description", "tools"}, "key of a namespace:")
            yield from _flat(tool["tools"], f"{place}.tools", tool["name"])
        else:
            yield tool, namespace, place
