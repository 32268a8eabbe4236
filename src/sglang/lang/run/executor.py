"""Runs the expressions of one state in order, asynchronously to the program.

    s += "text" + gen("x")      submit(): checks, queues; expressions that need no backend are applied at once while the state is idle
         _queue                 expressions that have not run
         _drain()               a coroutine on IO that lives only while there is work; gens and selects are run by writing.py
    s["x"]                      poll(): waits on `watch` until "x" has no queued writer left

Ownership: only the code that runs expressions writes `transcript` (the drain, or submit() while there is no drain; `_lock` decides
which). `vars`, `_queue` and `error` change under `_lock`. Readers need no lock: they read one attribute, and `watch` tells them to
read it again. So all that they may look for, also in a recording, is there before the state is idle.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang.lang.backend.base import BaseBackend, Prompt
from sglang.lang.chat_template import ChatTemplate
from sglang.lang.concurrency.background import IO
from sglang.lang.concurrency.place import place
from sglang.lang.concurrency.watch import Watch
from sglang.lang.errors import BackendError, ProgramError, StateCancelledError, copy_of
from sglang.lang.ir import (
    Expr,
    Gen,
    Image,
    RoleBegin,
    RoleEnd,
    Select,
    SeparateReasoning,
    Text,
    VarBegin,
    VarEnd,
    leaves,
)
from sglang.lang.record.runlog import EventKind, RunLog
from sglang.lang.run.body import Body
from sglang.lang.run.speculation import Speculation
from sglang.lang.run.transcript import Transcript
from sglang.lang.run.variables import SAME, Name, Variables
from sglang.lang.run.writing import write_gen, write_select

MIN_PREFILL_LEN = 32
"""characters of the prompt that are new to the server, from which on a fork has them prefilled once for all its children"""


@dataclass(frozen=True, slots=True)
class ForkPoint(Expr):
    """Here the children copy the state."""

    children: tuple[Executor, ...]


@dataclass(frozen=True, slots=True)
class JoinPoint(Expr):
    """Here the state waits for its children and takes their variables (or their text)."""

    children: tuple[Executor, ...]
    mode: str
    names: tuple[Name, ...] = ()

    @property
    def written_names(self) -> tuple[Name, ...]:
        return self.names


class Executor:
    """One state: its text, its variables, and the queue of pieces still to run. See the module's docstring."""

    def __init__(
        self,
        backend: BaseBackend,
        options: Mapping[str, Any] | None = None,
        *,
        stream: bool = False,
        body: Body | None = None,
        template: ChatTemplate | None = None,
        log: RunLog | None = None,
        branch: str = "0",
        waiting_for_parent: bool = False,
    ) -> None:
        self.backend = backend
        self.options = dict(options or {})
        self.stream = stream
        self.body = body or Body(running=False)
        self.log = log
        self.branch = branch

        self.transcript = Transcript(template or backend.get_chat_template())
        self.vars = Variables()
        self.error: BaseException | None = None
        self.fork_start = 0
        self.speculation: Speculation | None = None
        self.before_first_call: Callable[[Prompt], Awaitable[None]] | None = None

        self.watch = Watch()
        self._lock = threading.Lock()
        self._queue: deque[Expr] = deque()
        self._busy = waiting_for_parent
        self._awaits_parent = waiting_for_parent
        self._task: asyncio.Task[None] | None = None
        self._submitted_role: str | None = None
        self._open_scopes: list[str] = []
        self._scope_starts: dict[str, int] = {}
        self.cached_len = 0
        self._cancelled = False
        self.body.branches.add(self)

    # --- taking pieces in (any thread) ----------------------------------------------------------------------------------

    def submit(self, expr: Expr) -> None:
        """Queues the pieces of `expr`. Raises ProgramError, with nothing queued, when they have no meaning here. A state
        that has failed ignores them: the error is raised where a value is used."""
        pieces = leaves(expr)
        with self._lock:
            self._check_structure(pieces)
            if self.error is not None:
                self._drop(pieces, self.error)
                return
            for piece in pieces:
                self._queue.append(piece)
                self.vars.expect(_started_names(piece))
            if self._busy:
                return
            self._run_local()
            self._busy = start = bool(self._queue)
        self.watch.bump()
        if start:
            IO.spawn(self._drain())

    def _check_structure(self, pieces: Sequence[Expr]) -> None:
        role, scopes = self._submitted_role, list(self._open_scopes)
        for piece in pieces:
            if isinstance(piece, RoleBegin):
                if role is not None:
                    raise ProgramError(f"a {piece.role} message cannot begin inside a {role} message: end that one first")
                role = piece.role
            elif isinstance(piece, RoleEnd):
                if role != piece.role:
                    raise ProgramError(f"{piece.role}_end without {piece.role}_begin")
                role = None
            elif isinstance(piece, VarBegin):
                scopes.append(piece.name)
            elif isinstance(piece, VarEnd):
                scopes.remove(piece.name)
        self._submitted_role, self._open_scopes = role, scopes

    def _run_local(self) -> None:
        """Applies pieces that need no backend, up to the first that does."""
        while self._queue and self.speculation is None:
            piece = self._queue[0]
            if isinstance(piece, ForkPoint) and not self._needs_prefill(piece):
                self._release(piece)
            elif type(piece) in LOCAL_PIECES:
                self._apply(piece)
            else:
                return
            self._queue.popleft()

    # --- running pieces (the drain, or submit of an idle state) ------------------------------------------------------------

    async def _drain(self) -> None:
        self._task = asyncio.current_task()
        try:
            if self._cancelled:
                raise asyncio.CancelledError
            while (piece := self._next_piece()) is not None:
                if self.speculation is not None and await self.speculation.run(self, piece):
                    pass
                elif type(piece) in LOCAL_PIECES:
                    with self._lock:
                        self._apply(piece)
                else:
                    await _REMOTE[type(piece)](self, piece)
                self.watch.bump()
        except asyncio.CancelledError:
            self._fail(StateCancelledError("the state was cancelled"))
        except Exception as error:  # noqa: BLE001 - outermost loop of a state: whatever it is belongs to the state's readers
            self._fail(error)
        finally:
            self._task = None
            self.watch.bump()

    def _next_piece(self) -> Expr | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._busy = False
            return None

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self.error is None:
                self.error = error
                self.record("error", text=str(error))
            self.vars.fail()
            pieces = list(self._queue)
            self._queue.clear()
            self._drop(pieces, self.error)
            self._busy = self._awaits_parent = False

    def _drop(self, pieces: Sequence[Expr], error: BaseException) -> None:
        """Pieces that will never run: their variables fail, and so do forks that wait for them."""
        for piece in pieces:
            self.vars.fail(piece.written_names)
            if isinstance(piece, ForkPoint):
                for child in piece.children:
                    child._fail(copy_of(error))
                    child.watch.bump()

    def _apply(self, piece: Expr) -> None:
        match piece:
            case Text(value):
                self.add_text(value)
            case RoleBegin(role):
                self.record("text", text=self.transcript.begin_role(role))
            case RoleEnd():
                self.record("text", text=self.transcript.end_role())
            case Image():
                self.record("text", text=self.transcript.add_image(piece))
            case VarBegin(name):
                self._scope_starts[name] = len(self.text)
            case VarEnd(name):
                self._store(name, self.text[self._scope_starts.pop(name) :], None)

    def add_text(self, text: str) -> None:
        self.transcript.text += text
        if text:
            self.record("text", text=text)

    @property
    def text(self) -> str:
        """The whole text so far."""
        return self.transcript.text

    # --- pieces that need the backend ----------------------------------------------------------------------------------------

    async def call(self, make: Callable[[Prompt, str], Awaitable[Any]], prompt: Prompt | None = None) -> Any:
        """One call of the backend, by default with the text so far. Its errors say which request it was."""
        prompt, rid = prompt or self.transcript.prompt(), uuid.uuid4().hex
        if self.before_first_call is not None:
            wait, self.before_first_call = self.before_first_call, None
            await wait(prompt)
        token = place.set(f"{self.body.run}/{self.branch}")
        try:
            return await make(prompt, rid)
        except BackendError as error:
            error.attach(rid, prompt.text)
            raise
        finally:
            place.reset(token)

    def record(self, kind: EventKind, **fields: Any) -> None:
        """Adds an event to the run's log, if there is one."""
        if self.log is not None:
            self.log.add(kind, self.branch, **fields)

    def _needs_prefill(self, piece: ForkPoint) -> bool:
        uncached = len(self.text) - self.cached_len
        return len(piece.children) > 1 and self.backend.caches_prefixes and uncached >= MIN_PREFILL_LEN

    async def _fork(self, piece: ForkPoint) -> None:
        """The children start from here. A long prompt that is new to the server is prefilled once, before their requests."""
        if self._needs_prefill(piece):
            try:
                await self.call(lambda prompt, rid: self.backend.cache_prefix(prompt))
            except (BackendError, asyncio.CancelledError) as error:
                with self._lock:
                    self._drop([piece], error)
                raise
            self.cached_len = len(self.text)
        self._release(piece)

    def _release(self, piece: ForkPoint) -> None:
        self.record("fork", children=tuple(child.branch for child in piece.children))
        for child in piece.children:
            child._start_from(self)

    def _start_from(self, parent: Executor) -> None:
        with self._lock:
            self.transcript = parent.transcript.copy()
            self.fork_start = len(self.text)
            self.cached_len = parent.cached_len
            self.vars.inherit(parent.vars)
            self._scope_starts = dict(parent._scope_starts)
            self._awaits_parent = False
            self._busy = start = bool(self._queue) or self._cancelled
        self.watch.bump()
        if start:
            IO.spawn(self._drain())

    async def _join(self, piece: JoinPoint) -> None:
        for child in piece.children:
            await child.wait_idle()
            if child.error is not None:
                raise copy_of(child.error)
        if piece.mode == "concate_and_append":
            for child in piece.children:
                self.add_text(child.text[child.fork_start :])
            return
        single = piece.mode == "copy"
        with self._lock:
            for name in piece.names:
                all_vars = [child.vars for child in piece.children]
                texts = [one.texts.get(name) for one in all_vars]
                metas = [one.metas.get(name) for one in all_vars]
                values = [one.objects.get(name, text) for one, text in zip(all_vars, texts, strict=True)]
                if single:
                    self._store(name, texts[0], metas[0], values[0])
                else:
                    self._store(name, texts, metas, values)

    # --- variables -----------------------------------------------------------------------------------------------------------

    def store(self, name: Name, text: Any, meta: Any, value: Any = SAME) -> None:
        """Stores a variable that a piece has written; with the object behind its text, where it has a type."""
        with self._lock:
            self._store(name, text, meta, value)

    def _store(self, name: Name, text: Any, meta: Any, value: Any = SAME) -> None:
        """Stores a finished variable. Under `_lock`."""
        self.vars.store(name, text, meta, value)
        self.record("var_end", name=name, value=text, meta=meta)

    def set_variable(self, name: Name, value: Any) -> None:
        """`s[name] = value`: at once, whatever is queued."""
        with self._lock:
            self.vars.assign(name, value)
        self.watch.bump()

    def names(self) -> list[Name]:
        """Of all variables with a value or a queued writer; never waits."""
        with self._lock:
            return self.vars.names

    def has(self, name: Name) -> bool:
        """Whether the variable has a value or is going to have one; never waits."""
        return self.vars.has(name)

    def poll(self, name: Name) -> bool:
        """True when `vars.texts[name]` can be read; False when it must be waited for. Raises the state's error, ProgramError
        for a variable that can never come, KeyError for one that nobody writes."""
        if self.speculation is not None and self.vars.is_pending(name):
            self.speculation.flush(self)
        with self._lock:
            inside = self.body.is_caller()
            if name in self._open_scopes and inside:
                raise ProgramError(f"variable {name!r} cannot be read inside its own var_scope: it has no value yet")
            if self.vars.has_failed(name) and self.error is not None:
                raise copy_of(self.error)
            if self.vars.is_pending(name):
                return False
            if name in self.vars.texts:
                return True
            if self._awaits_parent or (self.stream and self.body.running and not inside):
                return False
            if self.error is not None:
                raise copy_of(self.error)
            raise KeyError(name)

    # --- waiting ---------------------------------------------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Nothing queued and nothing running."""
        return not self._busy

    @property
    def is_finished(self) -> bool:
        """Idle, and the program's code adds nothing more (as far as the caller is not that code)."""
        return not self._busy and not (self.body.running and not self.body.is_caller())

    async def wait_idle(self) -> None:
        """Returns when the queue is empty, whether or not the state failed."""
        while True:
            seen = self.watch.version
            if not self._busy:
                return
            await self.watch.wait_async(seen)

    def end_body(self, error: BaseException | None = None) -> None:
        """The program's code has ended; with `error` if it raised and no caller could catch it."""
        if error is not None:
            self._fail(error)
            self.cancel()
        else:
            self.record("end")
        self.body.running = False
        self.watch.bump()

    def cancel(self) -> None:
        """Ends the running request and drops what is queued. Takes no lock: it may be called by the garbage collector."""
        self._cancelled = True
        if self._busy or self._task is not None:
            IO.loop.call_soon_threadsafe(self._cancel_task)

    def _cancel_task(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def fork(self, size: int) -> tuple[Executor, ...]:
        """Children that start where this state is once everything submitted so far has run. Does not wait."""
        children = tuple(
            Executor(
                self.backend,
                self.options,
                stream=self.stream,
                body=self.body,
                template=self.transcript.template,
                log=self.log,
                branch=self.body.new_branch(self.branch),
                waiting_for_parent=True,
            )
            for _ in range(size)
        )
        parents = self.names()
        for child in children:
            child.vars.expect_parents(parents)
            child._submitted_role = self._submitted_role
            child._open_scopes = list(self._open_scopes)
        self.submit(ForkPoint(children))
        return children

    def join(self, children: Sequence[Executor], mode: str) -> None:
        """Takes over what the children wrote, once they have finished. Does not wait."""
        mine = set(self.vars.names)
        names: dict[Name, None] = {}
        if mode != "concate_and_append":
            for child in children:
                names.update((name, None) for name in child.vars.names if name not in mine)
        self.submit(JoinPoint(tuple(children), mode, tuple(names)))


def _started_names(piece: Expr) -> tuple[Name, ...]:
    """Variables that must be waited for from this piece on: a scope's from its begin, all others' from their writer."""
    if isinstance(piece, VarBegin):
        return (piece.name,)
    return () if isinstance(piece, VarEnd) else piece.written_names


LOCAL_PIECES = frozenset({Text, RoleBegin, RoleEnd, Image, VarBegin, VarEnd, SeparateReasoning})
_REMOTE: dict[type[Expr], Callable[[Executor, Any], Coroutine[Any, Any, None]]] = {
    Gen: write_gen,
    Select: write_select,
    ForkPoint: Executor._fork,
    JoinPoint: Executor._join,
}
