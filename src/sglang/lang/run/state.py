"""The state of a program: `s`.

ProgramState is the blocking interface of an Executor, AsyncProgramState the awaitable one.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from sglang.lang.chat_template import Message
from sglang.lang.concurrency.background import BODIES
from sglang.lang.errors import TypedValueError, copy_of
from sglang.lang.ir import Expr, ExprList, RoleBegin, RoleEnd, VarBegin, VarEnd, as_expr
from sglang.lang.record.runlog import Event
from sglang.lang.run.executor import Executor
from sglang.lang.run.streams import follow, follow_async, wait_async_until, wait_until
from sglang.lang.run.variables import Name

if TYPE_CHECKING:
    from sglang.lang.typed.tools import ToolResult

JoinMode = Literal["gather_variable", "concate_and_append"]
S = TypeVar("S", bound="StateBase")


class RoleScope:
    """The result of `s.user()`: `with` begins the message and ends it. Left alone, it does nothing."""

    def __init__(self, executor: Executor, role: str) -> None:
        self._executor = executor
        self._role = role

    def __enter__(self) -> None:
        self._executor.submit(RoleBegin(self._role))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # also after an exception in the block: the conversation stays well formed for a caller that catches it
        self._executor.submit(RoleEnd(self._role))


class StateBase:
    """Base of the blocking and the asynchronous state: adding expressions never waits."""

    def __init__(self, executor: Executor, is_owner: bool = True) -> None:
        self.stream_executor = executor
        self.ret_value: Any = None
        self._is_owner = is_owner

    def __iadd__(self: S, other: Expr | str) -> S:
        if not isinstance(other, _AlreadyAdded):
            self.stream_executor.submit(as_expr(other))
        return self

    def _role(self, role: str, expr: Expr | str | None) -> Any:
        if expr is None:
            return RoleScope(self.stream_executor, role)
        whole = ExprList((RoleBegin(role), *_leaves(expr), RoleEnd(role)))
        self.stream_executor.submit(whole)
        return _AlreadyAdded(whole.items)

    def system(self, expr: Expr | str | None = None) -> Any:
        """Adds a system message; without an argument, `with s.system():` makes one of the block."""
        return self._role("system", expr)

    def user(self, expr: Expr | str | None = None) -> Any:
        """Adds a user message; without an argument, `with s.user():` makes one of the block."""
        return self._role("user", expr)

    def assistant(self, expr: Expr | str | None = None) -> Any:
        """Adds an assistant message; without an argument, `with s.assistant():` makes one of the block."""
        return self._role("assistant", expr)

    @contextmanager
    def var_scope(self, name: str) -> Iterator[None]:
        """All text added in the block becomes variable `name`."""
        self.stream_executor.submit(VarBegin(name))
        try:
            yield
        finally:
            self.stream_executor.submit(VarEnd(name))

    def set_var(self, name: Name, value: Any) -> None:
        self.stream_executor.set_variable(name, value)

    def __setitem__(self, name: Name, value: Any) -> None:
        self.set_var(name, value)

    def __contains__(self, name: Name) -> bool:
        return self.stream_executor.has(name)

    def __iter__(self) -> Iterator[Name]:
        """Names of the variables that have a value or wait for one; does not wait."""
        return iter(self.stream_executor.names())

    def cancel(self) -> None:
        """Ends the running requests of the program and its forks; later uses raise StateCancelledError."""
        self.stream_executor.body.cancel()

    def disown(self) -> None:
        """The state goes on when this object is dropped: another object reads it."""
        self._is_owner = False

    def __del__(self) -> None:
        # the state cannot be read any more: what it still generates would be wasted work
        executor = getattr(self, "stream_executor", None)
        if executor is not None and self._is_owner and not executor.is_idle and not executor.body.running:
            executor.cancel()


class _AlreadyAdded(ExprList):
    """The value of `s.user(x)`, which has been added; `s += s.user(x)` must not add it twice."""

    __slots__ = ()


def _leaves(expr: Expr | str) -> tuple[Expr, ...]:
    found = as_expr(expr)
    return found.items if isinstance(found, ExprList) else (found,)


class ProgramState(StateBase):
    """A running or finished program. Reading a value waits for it and raises what went wrong with it."""

    def __init__(self, executor: Executor, inline: bool = False) -> None:
        super().__init__(executor)
        self._inline = inline

    def __iadd__(self, other: Expr | str) -> ProgramState:
        super().__iadd__(other)
        if self._inline:
            self._wait(lambda: self.stream_executor.is_idle)
        return self

    # --- values ---------------------------------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        wait_until(self.stream_executor, ready, timeout)

    def get_var(self, name: Name) -> Any:
        """Waits for the variable. Raises KeyError when nothing writes it, and the error of a piece that failed."""
        self._wait(lambda: self.stream_executor.poll(name))
        return self.stream_executor.vars.texts[name]

    def __getitem__(self, name: Name) -> Any:
        return self.get_var(name)

    def value(self, name: Name) -> Any:
        """The object of a gen with a `dtype`; the text of any other variable."""
        text = self.get_var(name)
        return typed_value(self.stream_executor, name, text)

    def call_tools(self, name: Name) -> list[ToolResult]:
        """Makes the calls of a gen with `tools`, several at once on threads; results in the order of the calls."""
        futures = [BODIES.submit(call.run, nested=True) for call in self.value(name)]
        return [future.result() for future in futures]

    def get_meta_info(self, name: Name, timeout: float | None = None) -> Any:
        """The backend's metadata of a variable; None when there is no such variable, or no metadata. Raises TimeoutError."""
        try:
            self._wait(lambda: self.stream_executor.poll(name), timeout)
        except KeyError:
            return None
        return self.stream_executor.vars.metas.get(name)

    def sync(self) -> None:
        """Waits for everything added so far; raises what went wrong."""
        self._wait(lambda: self.stream_executor.is_finished)
        if self.stream_executor.error is not None:
            raise copy_of(self.stream_executor.error)

    def text(self) -> str:
        """The whole prompt, generated text included."""
        self.sync()
        return self.stream_executor.text

    def messages(self) -> list[Message]:
        """The finished messages in OpenAI's format."""
        self.sync()
        return self.stream_executor.transcript.messages

    def error(self) -> BaseException | None:
        """Waits, and returns the error instead of raising it."""
        self._wait(lambda: self.stream_executor.is_finished)
        return self.stream_executor.error

    def __repr__(self) -> str:
        error = self.error()
        if error is not None:
            return f"ProgramState(error={error!r}, text={self.stream_executor.text!r})"
        return f"ProgramState({self.stream_executor.text})"

    # --- forks ----------------------------------------------------------------------------------------------------------

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ProgramStateGroup[ProgramState]:
        """`size` copies that continue independently. The common prompt is prefilled once."""
        check_fork(size, position_ids_offset)
        return ProgramStateGroup([ProgramState(child, self._inline) for child in self.stream_executor.fork(size)], self)

    @contextmanager
    def copy(self) -> Iterator[ProgramState]:
        """A branch for the block; the variables it adds are the state's afterwards, its text is not."""
        (child,) = self.stream_executor.fork(1)
        state = ProgramState(child)
        try:
            yield state
        finally:
            state.disown()
            self.stream_executor.join([child], "copy")

    # --- streams ----------------------------------------------------------------------------------------------------------

    def text_iter(self, var_name: str | None = None) -> Generator[str, None, None]:
        """Pieces of the whole text (prompt included), or of one variable, as they come. Closing the iterator early cancels
        the program. Without `stream=True` there is one piece."""
        if not self.stream_executor.stream:
            yield self.text() if var_name is None else self.get_var(var_name)
            return
        nothing = True
        with closing(follow(self.stream_executor, var_name, var_name is None)) as pieces:
            for piece, _ in pieces:
                nothing = False
                yield piece
        if nothing:
            yield ""

    async def text_async_iter(self, var_name: str | None = None, return_meta_data: bool = False) -> AsyncGenerator[Any, None]:
        """The same for an async reader; with `return_meta_data`, pairs of text and meta data (of a streamed variable)."""
        executor = self.stream_executor
        if not executor.stream:
            await wait_async_until(executor, lambda: executor.is_finished if var_name is None else executor.poll(var_name))
            yield self.text() if var_name is None else executor.vars.texts[var_name]
            return
        async for piece, meta in follow_async(executor, var_name, var_name is None):
            yield (piece, meta) if return_meta_data else piece

    def events(self) -> Generator[Event, None, None]:
        """The events of the program and all its forks, as they occur (record/runlog.py). Needs `stream=True` or a recording."""
        log = _log_of(self.stream_executor)
        position = 0
        while True:
            seen = log.watch.version
            while position < len(log.events):
                position += 1
                yield log.events[position - 1]
            if self.stream_executor.body.is_finished and position == len(log.events):
                return
            log.watch.wait(seen, 0.5)

    def to_html(self) -> str:
        """The run as an HTML page: the prompt with the generated text, the forks, a timeline. Needs `record=True` (or a file)."""
        from sglang.lang.record.viewer import render_html

        return render_html(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        from sglang.lang.record.recording import event_row

        self.error()
        return [event_row(event) for event in _log_of(self.stream_executor).events]

    def show(self) -> Any:
        """Displays the run in a notebook."""
        from IPython.display import HTML, display

        from sglang.lang.record.viewer import render_fragment

        return display(HTML(render_fragment(self._rows())))


class ProgramStateGroup(Generic[S]):
    """Forks of one state. `group += expr` adds to all, `group += [a, b]` one to each, `group += f` adds f(i) to the i-th."""

    def __init__(self, states: Sequence[S], parent: StateBase) -> None:
        self.states = list(states)
        self._parent = parent

    def __getitem__(self, index: int) -> S:
        return self.states[index]

    def __setitem__(self, index: int, state: S) -> None:
        """Supports `forks[i] += expr`, which ends with this assignment of the same state."""
        check_same_fork(self.states[index], index, state)

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[S]:
        return iter(self.states)

    def __iadd__(self, other: Expr | str | Sequence[Expr | str] | Callable[[int], Expr | str]) -> ProgramStateGroup[S]:
        for state, expr in zip(self.states, self._spread(other), strict=True):
            state.__iadd__(expr)
        return self

    def _spread(self, other: Any) -> Sequence[Expr | str]:
        if callable(other):
            return [other(i) for i in range(len(self.states))]
        if isinstance(other, (list, tuple)):
            if len(other) != len(self.states):
                raise ValueError(f"{len(self.states)} forks need as many expressions, got {len(other)}")
            return other
        return [other] * len(self.states)

    def join(self, mode: JoinMode = "gather_variable") -> None:
        """Brings what the forks wrote back to their parent, without waiting: every new variable as a list in the order of
        the forks ("gather_variable"), or the text each has added ("concate_and_append")."""
        if mode not in ("gather_variable", "concate_and_append"):
            raise ValueError(f'join mode must be "gather_variable" or "concate_and_append", got {mode!r}')
        for state in self.states:  # the parent reads them now, whether or not the program keeps them
            state.disown()
        self._parent.stream_executor.join([state.stream_executor for state in self.states], mode)


def typed_value(executor: Executor, name: Name, text: Any) -> Any:
    """The object behind a variable's text. Raises TypedValueError when the text is not of its type."""
    value = executor.vars.objects.get(name, text)
    wrong = next(_wrong_values(value), None)
    if wrong is not None:
        raise copy_of(wrong)
    return value


def _wrong_values(value: Any) -> Iterator[TypedValueError]:
    """Of several forks and samples, those that are not of their type."""
    if isinstance(value, TypedValueError):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _wrong_values(one)


def _log_of(executor: Executor) -> Any:
    if executor.log is None:
        raise ValueError("events are kept for runs with stream=True or record=...")
    return executor.log


def check_fork(size: int, position_ids_offset: Sequence[int] | None) -> None:
    if size < 1:
        raise ValueError(f"fork needs a size of at least 1, got {size}")
    if position_ids_offset is not None:
        warnings.warn("position_ids_offset has no effect: no server reads it", stacklevel=3)


def check_same_fork(fork: Any, index: Any, state: Any) -> None:
    """Raises TypeError where `forks[index] = state` would put another state into the place of `fork`."""
    if state is not fork:
        raise TypeError(f"forks[{index!r}] cannot be replaced by another state: append to it with forks[{index!r}] += ...")
