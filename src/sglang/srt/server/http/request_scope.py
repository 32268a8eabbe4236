"""Facts about a request that are known before its body is read: arrival time, client, deadline, trace.

They are in a context variable, so that they reach the tokenizer manager without a parameter in every function.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token

import msgspec

MAX_NAME = 256


class RequestScope(msgspec.Struct, eq=False):
    """`key`: the client, a digest of its verified API key (auth.py); empty where clients are not distinguished. Everything a client owns is
    found by it. `user`: whom the queue is to be fair to among those of one key, or of one `address`, where the
    request comes from unless that is this machine. `is_operator`: may do what concerns other clients.
    `trace`: a W3C traceparent."""

    arrived_at: float
    key: str = ""
    user: str = ""
    address: str = ""
    timeout: float | None = None
    trace: str | None = None
    run: str = ""
    """of a program of ours: run/branch (X-Sglang-Run)"""
    variable: str = ""
    """what the program calls the answer, if it tells (X-Sglang-Variable)"""
    is_operator: bool = True

    @property
    def client(self) -> tuple[str, ...]:
        """The client in the queue's fairness, outermost first: (key, user); without keys ("", address, user); for programs of
        this machine ("", user), and () if they name no user."""
        if self.address and not self.key:
            return ("", self.address, self.user)
        return (self.key, self.user) if self.key or self.user else ()

    def share_of(self, limit: int) -> int:
        """The most of `limit` places that this client can have at once (Scheduler._check_room): what asks for more never gets in."""
        return (limit + 1) // 2 if self.key else limit


_current: ContextVar[RequestScope | None] = ContextVar("request_scope", default=None)


def current_scope() -> RequestScope:
    """The scope of the request being served; outside HTTP an empty one."""
    return _current.get() or RequestScope(time.monotonic())


def name_user(user: object) -> None:
    """Enters the `user` of an OpenAI body."""
    scope = _current.get()
    if scope is not None and isinstance(user, str):
        scope.user = user[:MAX_NAME]


def enter_scope(scope: RequestScope) -> Token[RequestScope | None]:
    return _current.set(scope)


def leave_scope(token: Token[RequestScope | None]) -> None:
    _current.reset(token)
