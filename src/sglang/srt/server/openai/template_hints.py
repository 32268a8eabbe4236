"""Template variables of a chat request besides messages and tools: its own variables (`chat_template_kwargs`), and hints that
have a name of their own, of OpenAI's API or of other servers'.

reasoning_effort, verbosity       a word, for templates that know it; no effort means no reasoning
enable_thinking, thinking         whether the model reasons first
reasoning                         {effort, enabled}: both in one
"""

from __future__ import annotations

from typing import Any

from sglang.srt.errors import RequestError, UnsupportedError
from sglang.srt.server.fields import note_ignored, note_unknown
from sglang.srt.server.openai.protocol import ChatRequest
from sglang.srt.server.tokenization.chat_template import ChatTemplate

NO_EFFORT = "none"
_SWITCHES = ("enable_thinking", "thinking")
"""names that templates have for it"""
HINTS = frozenset({"reasoning_effort", "verbosity", "reasoning", *_SWITCHES})
_THINKING = {"enabled": True, "adaptive": None, "auto": None, "disabled": False}
"""`thinking.type` -> whether to reason; None: as the model likes"""


def template_variables(request: ChatRequest, template: ChatTemplate) -> dict[str, Any]:
    """The template variables of a request with some of HINTS. A hint that the template does not know is left out. Raises
    RequestError."""
    effort, thinks = _effort(request), _thinks(request)
    variables: dict[str, Any] = {}
    for name, value in (("reasoning_effort", effort), ("verbosity", request.verbosity)):
        if value is not None and template.mentions(name):
            variables[name] = value
        elif value not in (None, NO_EFFORT):
            note_ignored(f"{name}: this model's chat template does not know it")
    if thinks is not None or effort == NO_EFFORT:
        variables |= dict.fromkeys(_SWITCHES, bool(thinks))
    return variables | (request.chat_template_kwargs or {})


def _effort(request: ChatRequest) -> str | None:
    reasoning = request.reasoning or {}
    note_unknown(reasoning, {"effort", "enabled", "exclude", "max_tokens"}, "key of reasoning:")
    if reasoning.get("exclude"):
        raise UnsupportedError("reasoning.exclude is not supported by this server: leave reasoning_content aside", "reasoning")
    if reasoning.get("max_tokens"):
        note_ignored("reasoning.max_tokens")
    effort = reasoning.get("effort")
    if not isinstance(effort, str | None):
        raise RequestError("reasoning.effort must be a string", "reasoning")
    if None not in (effort, request.reasoning_effort) and effort != request.reasoning_effort:
        raise RequestError("reasoning_effort and reasoning.effort say different things: give one of them", "reasoning")
    return request.reasoning_effort or effort


def _thinks(request: ChatRequest) -> bool | None:
    """The request's setting of reasoning; None if it has none."""
    enabled = (request.reasoning or {}).get("enabled")
    said = {"enable_thinking": request.enable_thinking, "thinking": _thinking(request.thinking), "reasoning.enabled": enabled}
    given = {name: value for name, value in said.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, bool):
            raise RequestError(f"{name} must be true or false", name.partition(".")[0])
    if len(set(given.values())) > 1:
        raise RequestError(f"{' and '.join(given)} say different things: give one of them", next(iter(given)).partition(".")[0])
    return next(iter(given.values()), None)


def _thinking(thinking: bool | dict[str, Any] | None) -> bool | None:
    if not isinstance(thinking, dict):
        return thinking
    note_unknown(thinking, {"type", "budget_tokens"}, "key of thinking:")
    kind = thinking.get("type")
    if not isinstance(kind, str) or kind not in _THINKING:
        raise RequestError(f"thinking.type must be one of {', '.join(_THINKING)}", "thinking")
    if thinking.get("budget_tokens"):
        note_ignored("thinking.budget_tokens")
    return _THINKING[kind]
