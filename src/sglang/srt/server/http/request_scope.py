"""Facts about a request that are known before its body is read: arrival time, client, deadline, trace.

They are in a context variable, so that they reach the tokenizer manager without a parameter in every function.
"""

from __future__ import annotations

import time
from contextvars import ContextVar, Token
from secrets import token_hex

import msgspec

from sglang.srt.config import OF_BATCHES
from sglang.srt.server.http.journal import Journal

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
    is_background: bool = False
    """a request of a batch: it runs while there are no others (scheduler/admission/background.py)"""
    journal: Journal | None = None
    """of a request that comes through our gateway: what another server may go on with"""

    @property
    def client(self) -> tuple[str, ...]:
        """The client in the queue's fairness, outermost first: (key, user); without keys ("", address, user); for programs of
        this machine ("", user), and () if they name no user. Batches have a queue of their own."""
        if self.is_background:
            return (OF_BATCHES, self.key)
        if self.address and not self.key:
            return ("", self.address, self.user)
        return (self.key, self.user) if self.key or self.user else ()

    def share_of(self, limit: int) -> int:
        """The most of `limit` places that this client can have at once (Inlet.check_room): a request for more is never admitted."""
        return (limit + 1) // 2 if self.key else limit


_current: ContextVar[RequestScope | None] = ContextVar("request_scope", default=None)


def current_scope() -> RequestScope:
    """The scope of the request being served; outside HTTP an empty one."""
    return _current.get() or RequestScope(time.monotonic())


def new_name() -> str:
    """A unique name of 32 hexadecimal digits. A server that continues the answer of another one chooses the same name."""
    scope = _current.get()
    return scope.journal.name() if scope is not None and scope.journal is not None else token_hex(16)


def created_at() -> int:
    """The `created` of an answer, in seconds since 1970."""
    scope = _current.get()
    return scope.journal.created if scope is not None and scope.journal is not None else int(time.time())


def name_user(user: str | None) -> None:
    """Enters the `user` of an OpenAI body."""
    scope = _current.get()
    if scope is not None and user is not None:
        scope.user = user[:MAX_NAME]


def enter_scope(scope: RequestScope) -> Token[RequestScope | None]:
    return _current.set(scope)


def leave_scope(token: Token[RequestScope | None]) -> None:
    _current.reset(token)
