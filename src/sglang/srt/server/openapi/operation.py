"""The documentation of a handler, as a decorator: the only source of the OpenAPI document.

@documented("Generate from text or ids", tag=NATIVE, body=GENERATE_FIELDS, reply=GENERATED, events=GENERATED)
async def generate(self, request): ...
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sglang.srt.server.fields import Fields
from sglang.srt.server.openapi.schemas import Schema

OPENAI, ANTHROPIC, NATIVE = "OpenAI", "Anthropic", "native"
INFORMATION, CONTROL, NOT_HERE = "information", "control", "not here"
TAGS = {
    OPENAI: "OpenAI's API",
    ANTHROPIC: "Anthropic's API",
    NATIVE: "the native API: everything that the engine can do",
    INFORMATION: "what is served, and how busy it is",
    CONTROL: "for operators",
    NOT_HERE: "endpoints of other servers, which are answered with the reason why they are not here",
}
_ATTRIBUTE = "__operation__"

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Operation:
    """`reply`: JSON of a 200; None: there is none. `events`: data of the events of a stream, where the body asks for one. `text`: the
    reply is plain text. `paths`: what the parameters of the path are. `may_lack`: it answers 404 for what is not there. `admin`: it
    needs the admin key. `why`: it is not done here."""

    summary: str
    tag: str
    about: str = ""
    body: Fields | None = None
    reply: Schema | None = None
    events: Schema | None = None
    text: bool = False
    examples: tuple[dict[str, Any], ...] = ()
    paths: dict[str, str] = field(default_factory=dict)
    may_lack: bool = False
    admin: bool = False
    is_probe: bool = False
    """503 says something, and is no error"""
    why: str = ""


def documented(summary: str, tag: str, **more: Any) -> Callable[[F], F]:
    """Says of a handler what it does (Operation)."""
    operation = Operation(summary, tag, **more)

    def note(handler: F) -> F:
        setattr(handler, _ATTRIBUTE, operation)
        return handler

    return note


def operation_of(handler: Callable[..., Any]) -> Operation | None:
    found: Operation | None = getattr(handler, _ATTRIBUTE, None)
    return found
