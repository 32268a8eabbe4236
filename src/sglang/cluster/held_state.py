"""Which of several replicas has what a request refers to: a stored response, or a session.

Stored responses are asked for; sessions are remembered, since only the gateway that opened one is told its name.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

from sglang.cluster.servers import Server
from sglang.cluster.upstream import Headers, UpstreamLost
from sglang.srt.errors import EngineDeadError, NoSuchResponseError, OverloadError
from sglang.srt.server.http.bodies import peek
from sglang.srt.server.http.request_scope import current_scope
from sglang.srt.server.limits.json_limits import Pieces

MAX_SESSIONS = 10_000
"""of a client that are remembered"""
OPEN_SESSION = "/open_session"


Leases = Callable[[], Sequence[AbstractAsyncContextManager[Server]]]


class HeldState:
    """Owner of what is known of sessions. `leases`: one of each replica."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._sessions: defaultdict[str, OrderedDict[str, str]] = defaultdict(OrderedDict)
        """by client: none pushes those of another out"""

    def opened(self, answer: bytes, replica: str) -> None:
        """A replica has answered /open_session."""
        with contextlib.suppress(ValueError):
            name = json.loads(answer)
            if isinstance(name, str):
                own = self._sessions[current_scope().key]
                own[name] = replica
                while len(own) > MAX_SESSIONS:
                    own.popitem(last=False)

    async def holder(self, path: str, headers: Headers, body: Pieces) -> str | None:
        """The replica that a request has to go to; None where any will do. Raises NoSuchResponseError."""
        if path == "/v1/responses":
            name = await peek(body, "previous_response_id")
            return await self._of_response(name, headers) if isinstance(name, str) and name else None
        if path in ("/generate", "/close_session"):
            found = await peek(body, "session_params" if path == "/generate" else "session_id")
            name = found.get("id") if isinstance(found, dict) else found
            return self._sessions[current_scope().key].get(name) if isinstance(name, str) else None
        return None

    async def _of_response(self, name: str, headers: Headers) -> str:
        path = f"/v1/responses/{quote(name[:200], safe='')}"
        for lease in self._leases():
            with contextlib.suppress(OverloadError, EngineDeadError, UpstreamLost):
                async with lease as server:
                    head, _ = await server.upstream.ask("GET", path, headers)
                    if head.status == 200:
                        return server.replica
        raise NoSuchResponseError(
            f"no replica has the response {name[:100]!r}: it was not stored, or the replica that had it is gone; send the whole "
            "conversation instead",
            "previous_response_id",
        )
