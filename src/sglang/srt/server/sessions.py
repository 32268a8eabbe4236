"""Sessions: conversations that the server stores, so that a client sends only new input.

A session is a tree of requests. Each node holds what its request added to the one before it:

    open_session                                                   root
    generate "A"   session_params {"id": s}             -> r1      root ── r1
    generate "B"   {"id": s, "rid": r1}                 -> r2      root ── r1 ── r2             append
    generate "C"   {"id": s, "rid": r1}                 -> r3      root ── r1 ─┬─ r2            branch
                                                                              └─ r3
    generate "D"   {"id": s, "rid": r1, "replace": true} -> r4     root ── r1 ── r4             replace

Only ids are stored here. KV is in the prefix cache as for all requests: it is reused unless it was evicted, and computed again
otherwise, with the same answer. A session belongs to the API key that opened it, and so does its name: other keys may use the same
name and learn nothing. No key may hold more sessions or tokens than it leaves free, so there is room for others.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from sglang.srt.errors import NoSuchSessionError, OverloadError, RequestError

NODE_TOKENS = 16
"""what a request counts for besides its tokens"""
MAX_NAME = 256


@dataclass(frozen=True)
class SessionParams:
    """A request's place in a session. `rid`: the request that it follows; None: the beginning. `offset`: of what stood before,
    only so many tokens (from the end if negative; 0: all). `replace`: forget all that followed before. `drop_previous_output`:
    follow the prompt of `rid`, without its answer."""

    id: str
    rid: str | None = None
    offset: int = 0
    replace: bool = False
    drop_previous_output: bool = False


@dataclass(eq=False)
class _Node:
    """One request: its sequence is the first `kept` tokens of its parent's, then `own`."""

    parent: _Node | None
    kept: int = 0
    own: array[int] = field(default_factory=lambda: array("i"))
    prompt_len: int = 0
    finished: bool = False
    children: dict[str, _Node] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.kept + len(self.own)

    @property
    def cost(self) -> int:
        return len(self.own) + NODE_TOKENS

    def ids(self, count: int) -> list[int]:
        """The first `count` tokens of the sequence."""
        parts: list[array[int]] = []
        node: _Node | None = self
        while node is not None:
            parts.append(node.own[: max(count - node.kept, 0)])
            count, node = min(count, node.kept), node.parent
        return [i for part in reversed(parts) for i in part]

    def below(self) -> Iterator[tuple[str, _Node]]:
        """All requests that follow, with their names."""
        left = list(self.children.items())
        while left:
            name, node = left.pop()
            yield name, node
            left += node.children.items()


@dataclass(eq=False)
class _Session:
    """`capacity`: characters that the text of a conversation may have; None: as many as fit in the context."""

    name: str
    owner: str
    capacity: int | None
    used_at: float
    root: _Node = field(default_factory=lambda: _Node(None, finished=True))
    nodes: dict[str, _Node] = field(default_factory=dict)
    cost: int = NODE_TOKENS

    @property
    def is_running(self) -> bool:
        return any(not node.finished for node in self.nodes.values())


@dataclass(frozen=True)
class Place:
    """The place of a request: after `ids`."""

    session: _Session
    parent: _Node
    params: SessionParams
    ids: list[int]

    @property
    def capacity(self) -> int | None:
        return self.session.capacity


class Turn:
    """A request of a session while it runs."""

    __slots__ = ("_name", "_node", "_session", "_sessions")

    def __init__(self, sessions: Sessions, session: _Session, name: str, node: _Node) -> None:
        self._sessions, self._session, self._name, self._node = sessions, session, name, node

    def add(self, ids: list[int]) -> None:
        """Tokens of the answer."""
        self._node.own.extend(ids)

    def finish(self) -> None:
        """Ends the request: others may follow it from now on."""
        self._node.finished = True
        self._sessions.note_finished(self._session, self._name, self._node)

    def drop(self) -> None:
        """Removes a request that failed, or whose client has left, from the conversation."""
        self._sessions.note_dropped(self._session, self._name, self._node)


class Sessions:
    """Owner of all sessions, by owner and name. `max_tokens` counts those of all of them together; one that was not used for `timeout`
    seconds is closed. An `owner` is a RequestScope's key."""

    def __init__(self, max_sessions: int, max_tokens: int, timeout: float) -> None:
        self._max_sessions = max_sessions
        self._max_tokens = max_tokens
        self._timeout = timeout
        self._sessions: dict[tuple[str, str], _Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def num_tokens(self) -> int:
        return sum(session.cost for session in self._sessions.values())

    def open(self, name: str | None, capacity: int | None, owner: str) -> str:
        """The new session's name. Raises RequestError if there is such a session, OverloadError if there are too many."""
        self._expire()
        if name is not None and not 0 < len(name) <= MAX_NAME:
            raise RequestError(f"session_id must have 1 to {MAX_NAME} characters", "session_id")
        name = name or uuid4().hex
        if (owner, name) in self._sessions:
            raise RequestError("there is a session of this name already", "session_id")
        self._check_room("sessions", self._max_sessions, 1, len(self._sessions), len(self._of(owner)), owner)
        self._sessions[owner, name] = _Session(name, owner, capacity, time.monotonic())
        return name

    def close(self, name: str, owner: str) -> None:
        """Forgets a session; what runs in it goes on. Raises NoSuchSessionError."""
        del self._sessions[owner, self._find(name, owner).name]

    def place(self, params: SessionParams, owner: str) -> Place:
        """The request's place, with the ids before it. Raises RequestError, or NoSuchSessionError."""
        self._expire()
        session = self._find(params.id, owner)
        parent = self._parent(session, params)
        count = parent.prompt_len if params.drop_previous_output else parent.length
        if abs(params.offset) > count:
            raise RequestError(f"offset is {params.offset}, but the request before has {count} tokens", "session_params")
        if params.offset:
            count = params.offset if params.offset > 0 else count + params.offset
        return Place(session, parent, params, parent.ids(count))

    def enter(self, place: Place, name: str, prompt: Sequence[int]) -> Turn:
        """Takes the request `name` in, whose whole prompt is known by now. Raises RequestError if the session has changed so
        that it cannot be, OverloadError if there is no room."""
        session, params = place.session, place.params
        if self._find(params.id, session.owner) is not session or self._parent(session, params) is not place.parent:
            raise RequestError("the session was changed meanwhile", "session_params")
        if name in session.nodes:
            raise RequestError(f"the session has a request with the rid {name[:100]!r} already", "rid")
        kept = min(len(place.ids), len(prompt))
        node = _Node(place.parent, kept, array("i", prompt[kept:]), len(prompt))
        freed = self._check_replace(place) if params.replace else 0
        own = sum(one.cost for one in self._of(session.owner)) - freed
        self._check_room("tokens of sessions", self._max_tokens, node.cost, self.num_tokens - freed, own, session.owner)
        if params.replace:
            self._forget_below(session, place.parent)
        place.parent.children[name] = session.nodes[name] = node
        session.cost += node.cost
        session.used_at = time.monotonic()
        return Turn(self, session, name, node)

    def note_finished(self, session: _Session, name: str, node: _Node) -> None:
        if session.nodes.get(name) is node:
            session.used_at = time.monotonic()
            session.cost += node.length - node.prompt_len

    def note_dropped(self, session: _Session, name: str, node: _Node) -> None:
        if session.nodes.get(name) is node:
            del session.nodes[name]
            assert node.parent is not None
            node.parent.children.pop(name, None)
            session.cost -= node.prompt_len - node.kept + NODE_TOKENS

    # --- inside -------------------------------------------------------------------------------------------------------------

    def _of(self, owner: str) -> list[_Session]:
        return [session for session in self._sessions.values() if session.owner == owner]

    @staticmethod
    def _check_room(what: str, limit: int, more: int, held: int, own: int, owner: str) -> None:
        """`held` by all, `own` of them by the owner. Raises OverloadError."""
        if held + more > limit:
            raise OverloadError(f"at most {limit} {what} are kept, and there is no room: close a session first")
        if owner and own + more > limit - held:
            raise OverloadError(
                f"this API key holds {own} of {limit} {what}, and the rest is for others: close a session first"
            )

    def _find(self, name: str, owner: str) -> _Session:
        session = self._sessions.get((owner, name))
        if session is None:
            raise NoSuchSessionError(
                f"there is no session {name[:100]!r}; it may have been closed, or not used for long", "session_id"
            )
        return session

    @staticmethod
    def _parent(session: _Session, params: SessionParams) -> _Node:
        if params.rid is None:
            return session.root
        node = session.nodes.get(params.rid)
        if node is None:
            raise RequestError(f"the session has no request with the rid {params.rid[:100]!r}", "session_params")
        if not node.finished:
            raise RequestError(f"the request {params.rid[:100]!r} is still running: wait for it, or abort it", "session_params")
        return node

    @staticmethod
    def _check_replace(place: Place) -> int:
        """The cost of the requests that would be freed. Raises RequestError if one of them still runs."""
        freed = 0
        for name, node in place.parent.below():
            if not node.finished:
                raise RequestError(f"the request {name[:100]!r} is still running and cannot be replaced", "session_params")
            freed += node.cost
        return freed

    @staticmethod
    def _forget_below(session: _Session, parent: _Node) -> None:
        for name, node in parent.below():
            del session.nodes[name]
            session.cost -= node.cost
        parent.children.clear()

    def _expire(self) -> None:
        """Closes sessions that were not used for long."""
        before = time.monotonic() - self._timeout
        for key, session in list(self._sessions.items()):
            if session.used_at < before and not session.is_running:
                del self._sessions[key]
