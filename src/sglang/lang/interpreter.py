"""Runs the pieces of one state, in order, behind the program.

    s += "text" + gen("x")      submit(): checks, queues; local pieces of an idle state are applied at once
         queue                  pieces not yet run
         _drain()               a coroutine on IO that lives only while there is work: one method per class of expression
    s["x"]                      get(): waits on `watch` until "x" has no queued writer left

Who writes what: `text`, `messages`, `images`, `role` belong to whoever runs pieces (the drain, or submit() while there is no
drain; `_lock` decides which). `variables`, `metas`, `_pending`, `_queue`, `error` change under `_lock`. Readers need no lock:
they read one attribute, and `watch` tells them to look again.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from sglang.lang.background import IO
from sglang.lang.backend.base import BaseBackend, Generation, Prompt
from sglang.lang.chat_template import ChatTemplate, Message
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
from sglang.lang.reasoning import ReasoningSplitter, split_reasoning
from sglang.lang.runlog import RunLog
from sglang.lang.sampling import resolve
from sglang.lang.watch import Watch

MIN_COMMIT_LEN = 32
"""characters that the server must not have seen yet for a fork to have them computed ahead"""

Name = str | None


@dataclass
class LiveVariable:
    """A variable while it is written: what iterators follow."""

    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    done: bool = False


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


@dataclass
class Body:
    """The program's own code: who runs it, and whether it still runs. Shared by a state and its forks."""

    owner: object = None
    """thread ident, or asyncio.Task of an async program"""
    running: bool = True
    branches: weakref.WeakSet[Executor] = field(default_factory=weakref.WeakSet)

    def is_caller(self) -> bool:
        if self.owner == threading.get_ident():
            return True
        try:
            return self.owner is asyncio.current_task()
        except RuntimeError:
            return False


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
        self.template = template or backend.get_chat_template()
        self.stream = stream
        self.body = body or Body(running=False)
        self.log = log
        self.branch = branch

        self.text = ""
        self.messages: list[Message] = []
        self.images: list[Image] = []
        self.role: str | None = None
        self.role_start = 0
        self.role_images: list[Image] = []
        self.variables: dict[Name, Any] = {}
        self.values: dict[Name, Any] = {}
        """typed objects beside the texts"""
        self.metas: dict[Name, Any] = {}
        self.live: dict[Name, LiveVariable] = {}
        self.error: BaseException | None = None
        self.fork_start = 0
        self.before_first_call: Callable[[Prompt], Awaitable[None]] | None = None

        self.watch = Watch()
        self._lock = threading.Lock()
        self._queue: deque[Expr] = deque()
        self._pending: dict[Name, int] = {}
        self._failed_names: frozenset[Name] = frozenset()
        self._busy = waiting_for_parent
        self._orphan = waiting_for_parent
        self._task: asyncio.Task[None] | None = None
        self._submitted_role: str | None = None
        self._open_scopes: list[str] = []
        self._scope_starts: dict[str, int] = {}
        self._known_len = 0
        self._cancelled = False
        self._parent_names: frozenset[Name] = frozenset()
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
                for name in _started_names(piece):
                    self._pending[name] = self._pending.get(name, 0) + 1
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
        while self._queue:
            piece = self._queue[0]
            if isinstance(piece, ForkPoint) and not self._needs_commit(piece):
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
                if type(piece) in LOCAL_PIECES:
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
            error = self.error = self.error or error
            self._busy = self._orphan = False
            self._failed_names = frozenset(name for name, count in self._pending.items() if count)
            self._pending.clear()
            for live in self.live.values():
                live.done = True
            pieces = list(self._queue)
            self._queue.clear()
            self._drop(pieces, error)
        if self.log is not None:
            self.log.add("error", self.branch, text=str(error))

    def _drop(self, pieces: Sequence[Expr], error: BaseException) -> None:
        """Pieces that will never run: their variables fail, and so do forks that wait for them."""
        for piece in pieces:
            self._failed_names |= frozenset(piece.written_names)
            if isinstance(piece, ForkPoint):
                for child in piece.children:
                    child._fail(copy_of(error))
                    child.watch.bump()

    def _apply(self, piece: Expr) -> None:
        match piece:
            case Text(value):
                self._add_text(value)
            case RoleBegin(role):
                self._begin_role(role)
            case RoleEnd(role):
                self._end_role(role)
            case Image():
                self.images.append(piece)
                self.role_images.append(piece)
                self._add_text(self.template.image_token)
            case VarBegin(name):
                self._scope_starts[name] = len(self.text)
            case VarEnd(name):
                self._set(name, self.text[self._scope_starts.pop(name) :], None)

    def _add_text(self, text: str) -> None:
        self.text += text
        if self.log is not None and text:
            self.log.add("text", self.branch, text=text)

    def _begin_role(self, role: str) -> None:
        default = self.template.default_system_prompt
        if not self.messages and role != "system" and default is not None:
            self._begin_role("system")
            self._add_text(default)
            self._end_role("system")
        prefix, _ = self.template.get_prefix_and_suffix(role, self.messages)
        self._add_text(prefix)
        self.role, self.role_start, self.role_images = role, len(self.text), []

    def _end_role(self, role: str) -> None:
        _, suffix = self.template.get_prefix_and_suffix(role, self.messages)
        content = self.text[self.role_start :].lstrip()
        self.messages.append(_message(role, content, self.role_images, self.template.image_token))
        self._add_text(suffix)
        self.role, self.role_images = None, []

    # --- pieces that need the backend ----------------------------------------------------------------------------------------

    def prompt(self) -> Prompt:
        """What has been written so far, as a backend sees it."""
        return Prompt(self.text, tuple(self.messages), tuple(self.images), self.role, self.role_start)

    async def _call(self, make: Callable[[Prompt, str], Awaitable[Any]]) -> Any:
        """One call of the backend, whose errors say which request it was."""
        prompt, rid = self.prompt(), uuid.uuid4().hex
        if self.before_first_call is not None:
            wait, self.before_first_call = self.before_first_call, None
            await wait(prompt)
        try:
            return await make(prompt, rid)
        except BackendError as error:
            error.attach(rid, prompt.text)
            raise

    async def _gen(self, piece: Gen) -> None:
        options = resolve(self.options, piece.options, self.template.stop_str)
        if piece.typed is not None:
            options = piece.typed.constrain(options, self.backend)
        live = self._start_live(piece.name)
        if self.stream or piece.stream:
            generation = await self._gen_stream(piece, options, live)
        else:
            generation = await self._call(lambda prompt, rid: self.backend.generate(prompt, options, rid))
            self._write_whole(piece, generation, live)
        if piece.typed is not None:
            generation = await self._check_typed(piece, options, generation)
        many = (options.get("n") or 1) > 1
        value: Any = generation.texts if many else generation.texts[0]
        self._known_len = len(self.text)
        with self._lock:
            self._set(piece.name, value, generation.metas if many else generation.metas[0])

    def _start_live(self, name: Name) -> LiveVariable:
        live = self.live[name] = LiveVariable()
        if self.log is not None:
            self.log.add("var_start", self.branch, name=name)
        return live

    def _write_whole(self, piece: Gen, generation: Generation, live: LiveVariable) -> None:
        """Appends a reply that came in one piece; splits off its reasoning when asked to."""
        if piece.reasoning is not None:
            splits = [split_reasoning(text, piece.reasoning) for text in generation.texts]
            generation.texts[:] = [answer for _, answer in splits]
            thoughts = [thinking for thinking, _ in splits]
            self._set_reasoning(piece, thoughts if len(thoughts) > 1 else thoughts[0])
        live.text, live.meta = generation.texts[0], generation.metas[0]
        self.text += live.text
        if self.log is not None:
            self.log.add("var_delta", self.branch, name=piece.name, text=live.text)

    async def _gen_stream(self, piece: Gen, options: dict[str, Any], live: LiveVariable) -> Generation:
        async def stream(prompt: Prompt, rid: str) -> Generation:
            texts = [""] * (options.get("n") or 1)
            metas: list[dict[str, Any]] = [{} for _ in texts]
            splitter = ReasoningSplitter(piece.reasoning) if piece.reasoning else None
            thoughts = LiveVariable()
            async with aclosing(self.backend.generate_stream(prompt, options, rid)) as deltas:
                async for delta in deltas:
                    metas[delta.index] = delta.meta
                    if delta.index:
                        texts[delta.index] += delta.text
                        continue
                    texts[0] += self._stream_piece(piece, delta.text, delta.meta, live, splitter, thoughts)
            if splitter is not None:
                texts[0] += self._stream_piece(piece, None, metas[0], live, splitter, thoughts)
                self._set_reasoning(piece, thoughts.text.strip())
            return Generation(texts, metas)

        result: Generation = await self._call(stream)
        return result

    def _stream_piece(
        self,
        piece: Gen,
        text: str | None,
        meta: dict[str, Any],
        live: LiveVariable,
        splitter: ReasoningSplitter | None,
        thoughts: LiveVariable,
    ) -> str:
        """Shows one streamed piece (None: the end) to whoever follows; returns what of it belongs to the answer."""
        if splitter is not None:
            thinking, text = splitter.close() if text is None else splitter.feed(text)
            if thinking:
                thoughts.text += thinking
                name = f"{piece.name}_reasoning_content"
                self.live[name] = thoughts
                if self.log is not None:
                    self.log.add("var_delta", self.branch, name=name, text=thinking)
        text = text or ""
        live.text += text
        live.meta = meta
        self.text += text
        if self.log is not None and text:
            self.log.add("var_delta", self.branch, name=piece.name, text=text, meta=meta)
        self.watch.bump()
        return text

    def _set_reasoning(self, piece: Gen, thoughts: Any) -> None:
        with self._lock:
            self._set(f"{piece.name}_reasoning_content", thoughts, None)

    async def _check_typed(self, piece: Gen, options: dict[str, Any], generation: Generation) -> Generation:
        """Reads the texts as objects; where the backend could not be held to the type, asks again with the error."""
        assert piece.typed is not None
        start = len(self.text) - len(generation.texts[0])

        async def again(note: str) -> Generation:
            prompt = self.prompt()
            retry = piece.typed.retry_prompt(prompt, start, note) if piece.typed else prompt
            result: Generation = await self.backend.generate(retry, options, uuid.uuid4().hex)
            return result

        checked, values = await piece.typed.check(generation, self.backend, again)
        if checked is not generation:
            self.text = self.text[:start] + checked.texts[0]
        self.values[piece.name] = values if len(values) > 1 else values[0]
        return checked

    async def _select(self, piece: Select) -> None:
        live = self._start_live(piece.name)
        decision = await self._call(lambda prompt, rid: self.backend.select(prompt, piece, rid))
        self.text += decision.decision
        self._known_len = len(self.text)
        live.text, live.meta = decision.decision, decision.meta_info
        if self.log is not None:
            self.log.add("var_delta", self.branch, name=piece.name, text=decision.decision)
        with self._lock:
            self._set(piece.name, decision.decision, decision.meta_info)

    def _needs_commit(self, piece: ForkPoint) -> bool:
        unread = len(self.text) - self._known_len
        return len(piece.children) > 1 and self.backend.caches_prefixes and unread >= MIN_COMMIT_LEN

    async def _fork(self, piece: ForkPoint) -> None:
        """The children start from here. What the server has not read yet, it reads once, before all of them ask for it."""
        if self._needs_commit(piece):
            try:
                await self._call(lambda prompt, rid: self.backend.cache_prefix(prompt))
            except (BackendError, asyncio.CancelledError) as error:
                with self._lock:
                    self._drop([piece], error)
                raise
            self._known_len = len(self.text)
        self._release(piece)

    def _release(self, piece: ForkPoint) -> None:
        for child in piece.children:
            child._start_from(self)
        if self.log is not None:
            self.log.add("fork", self.branch, children=tuple(child.branch for child in piece.children))

    def _start_from(self, parent: Executor) -> None:
        with self._lock:
            self.text = parent.text
            self.messages = list(parent.messages)
            self.images = list(parent.images)
            self.role, self.role_start = parent.role, parent.role_start
            self.role_images = list(parent.role_images)
            self.fork_start = len(self.text)
            self._known_len = parent._known_len
            self.variables = {**parent.variables, **self.variables}
            self.values = {**parent.values, **self.values}
            self.metas = {**parent.metas, **self.metas}
            self._scope_starts = dict(parent._scope_starts)
            self._orphan = False
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
                self._add_text(child.text[child.fork_start :])
            return
        single = piece.mode == "copy"
        with self._lock:
            for name in piece.names:
                gathered = [child.variables.get(name) for child in piece.children]
                metas = [child.metas.get(name) for child in piece.children]
                self._set(name, gathered[0] if single else gathered, metas[0] if single else metas)

    # --- variables -----------------------------------------------------------------------------------------------------------

    def _set(self, name: Name, value: Any, meta: Any) -> None:
        """Stores a finished variable; one queued writer less. Under `_lock`."""
        self.variables[name] = value
        if meta is not None:
            self.metas[name] = meta
        left = self._pending.get(name, 0) - 1
        if left > 0:
            self._pending[name] = left
        else:
            self._pending.pop(name, None)
        live = self.live.get(name)
        if live is None or live.done:
            live = self.live[name] = LiveVariable(text=value if isinstance(value, str) else "")
        live.done = True
        if self.log is not None:
            self.log.add("var_end", self.branch, name=name, value=value, meta=meta)

    def set_variable(self, name: Name, value: Any) -> None:
        """`s[name] = value`: at once, whatever is queued."""
        with self._lock:
            self.variables[name] = value
            self._failed_names -= {name}
        self.watch.bump()

    def has(self, name: Name) -> bool:
        """Whether the variable has a value or is going to have one; never waits."""
        return name in self.variables or bool(self._pending.get(name)) or (self._orphan and name in self._parent_names)

    def poll(self, name: Name) -> bool:
        """True when `variables[name]` can be read; False when it must be waited for. Raises the state's error, ProgramError
        for a variable that can never come, KeyError for one that nobody writes."""
        with self._lock:
            inside = self.body.is_caller()
            if name in self._open_scopes and inside:
                raise ProgramError(f"variable {name!r} cannot be read inside its own var_scope: it has no value yet")
            if name in self._failed_names and self.error is not None:
                raise copy_of(self.error)
            if self._pending.get(name):
                return False
            if name in self.variables:
                return True
            if self._orphan or (self.stream and self.body.running and not inside):
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

    @property
    def written(self) -> list[Name]:
        """All variables with a value or a queued writer."""
        with self._lock:
            return [*self.variables, *(n for n, count in self._pending.items() if count and n not in self.variables)]

    async def wait_idle(self) -> None:
        """Returns when the queue is empty, whether or not the state failed."""
        while True:
            seen = self.watch.version
            if not self._busy:
                return
            await self.watch.wait_async(seen)

    def end_body(self, error: BaseException | None = None) -> None:
        """The program's code has ended; with `error` if it raised while nobody was there to catch it."""
        self.body.running = False
        if error is not None:
            self._fail(error)
            self.cancel()
        elif self.log is not None:
            self.log.add("end", self.branch)
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
                template=self.template,
                log=self.log,
                branch=self.log.new_branch(self.branch) if self.log is not None else "0",
                waiting_for_parent=True,
            )
            for _ in range(size)
        )
        for child in children:
            child._parent_names = frozenset(self.written)
            child._submitted_role = self._submitted_role
            child._open_scopes = list(self._open_scopes)
        self.submit(ForkPoint(children))
        return children

    def join(self, children: Sequence[Executor], mode: str) -> None:
        """Takes over what the children wrote, once they have finished. Does not wait."""
        mine = set(self.written)
        names: dict[Name, None] = {}
        if mode != "concate_and_append":
            for child in children:
                names.update((name, None) for name in child.written if name not in mine)
        self.submit(JoinPoint(tuple(children), mode, tuple(names)))


def _started_names(piece: Expr) -> tuple[Name, ...]:
    """Variables that must be waited for from this piece on: a scope's from its begin, all others' from their writer."""
    if isinstance(piece, VarBegin):
        return (piece.name,)
    return () if isinstance(piece, VarEnd) else piece.written_names


def _message(role: str, content: str, images: Sequence[Image], image_token: str) -> Message:
    """A finished message in OpenAI's format."""
    if not images:
        return {"role": role, "content": content}
    parts: list[dict[str, Any]] = [{"type": "text", "text": content.replace(image_token, "", len(images))}]
    for image in images:
        url = image.data if image.data.startswith(("http://", "https://")) else f"data:{image.mime};base64,{image.data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return {"role": role, "content": parts}


LOCAL_PIECES = frozenset({Text, RoleBegin, RoleEnd, Image, VarBegin, VarEnd, SeparateReasoning})
_REMOTE: dict[type[Expr], Callable[[Executor, Any], Coroutine[Any, Any, None]]] = {
    Gen: Executor._gen,
    Select: Executor._select,
    ForkPoint: Executor._fork,
    JoinPoint: Executor._join,
}
