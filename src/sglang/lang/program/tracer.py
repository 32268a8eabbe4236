"""Runs a program without a model, to find its structure or the common prefix of all its runs.

Arguments that are not given become placeholders, which can be added to a prompt but not computed with: using one in an
f-string, a condition or a loop raises TypeError. User code runs here with those arguments, so it is done only when asked for
(`trace`, `cache`), never behind a batch. The tracing scope belongs to the calling context: other threads are not traced.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NoReturn

from sglang.lang.backend.base import BaseBackend, Prompt
from sglang.lang.ir import Expr, ExprList, Gen, Image, RoleBegin, RoleEnd, Select, Text, VarBegin, VarEnd, as_expr, leaves
from sglang.lang.program.options import Program, resolve_backend
from sglang.lang.run.executor import LOCAL_PIECES, Executor
from sglang.lang.run.state import check_same_fork


class StopTracing(Exception):
    """The prefix ends here."""


class Placeholder(Expr):
    """A value that is not known while tracing: an argument, or a variable of the program."""

    __slots__ = ("name", "source")

    def __init__(self, name: str | None, source: str) -> None:
        self.name = name
        self.source = source

    def __repr__(self) -> str:
        return f"%{self.name}" if self.source == "argument" else f"${self.name}"

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(f"the {self.source} {self.name!r} has no value while a program is traced")

    __str__ = __bool__ = __iter__ = __len__ = __getitem__ = __int__ = __float__ = __call__ = _refuse
    __format__ = _refuse


@dataclass(eq=False)
class TraceNode:
    """One piece of a traced program, and the piece before it (None: the start)."""

    node_id: int
    expr: Expr | str
    prev_node: TraceNode | None

    def __repr__(self) -> str:
        return f"%{self.node_id} = {_describe(self.expr)}"

    def print_graph_dfs(self) -> str:
        """Lists the pieces from the start to this one; prints and returns the listing."""
        chain: list[TraceNode] = []
        node: TraceNode | None = self
        while node is not None:
            chain.append(node)
            node = node.prev_node
        listing = "\n".join(map(repr, reversed(chain)))
        print(listing)
        return listing


def _describe(expr: Expr | str) -> str:
    match expr:
        case Text(value):
            return f"Constant({value!r})"
        case Gen(name):
            return f"Gen({name!r})"
        case Select(name, choices):
            return f"Select({name!r}, choices={list(choices)})"
        case RoleBegin(role):
            return f"RoleBegin({role})"
        case RoleEnd(role):
            return f"RoleEnd({role})"
        case Image():
            return "Image()"
        case VarBegin(name):
            return f"VarScopeBegin({name!r})"
        case VarEnd(name):
            return f"VarScopeEnd({name!r})"
    return repr(expr) if isinstance(expr, Expr) else expr


class TracerProgramState:
    """The state of a traced program: keeps the pieces instead of running them."""

    def __init__(self, backend: BaseBackend, parent: TracerProgramState | None = None) -> None:
        self.backend = backend
        self.nodes: list[TraceNode] = []
        self.variables: dict[str | None, Placeholder] = dict(parent.variables) if parent else {}
        self.last_node: TraceNode | None = parent.last_node if parent else None
        self.children: list[TracerProgramState] = []
        self.ret_value: Any = None
        self._ids: Iterator[int] = parent._ids if parent else itertools.count()

    def _add(self, expr: Expr | str) -> None:
        self.last_node = TraceNode(next(self._ids), expr, self.last_node)
        self.nodes.append(self.last_node)
        if isinstance(expr, Expr):
            for name in expr.written_names:
                self.variables[name] = Placeholder(name, "variable")

    def __iadd__(self, other: Expr | str) -> TracerProgramState:
        for piece in leaves(as_expr(other)):
            self._add(piece)
        return self

    def __getitem__(self, name: str | None) -> Placeholder:
        return self.variables[name]

    get_var = __getitem__

    def __contains__(self, name: str | None) -> bool:
        return name in self.variables

    def __setitem__(self, name: str | None, value: Any) -> None:
        self.variables[name] = value

    set_var = __setitem__

    def flatten_nodes(self) -> list[TraceNode]:
        """All pieces, those of forks where they were split off."""
        found = list(self.nodes)
        for child in self.children:
            found += child.flatten_nodes()
        return sorted(found, key=lambda node: node.node_id)

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> TracedForks:
        self._add(f"Fork({size})")
        forks = [TracerProgramState(self.backend, self) for _ in range(size)]
        self.children += forks
        return TracedForks(forks, self)

    @contextmanager
    def copy(self) -> Iterator[TracerProgramState]:
        forks = self.fork(1)
        yield forks[0]
        forks.join()

    @contextmanager
    def _block(self, begin: Expr, end: Expr) -> Iterator[None]:
        self._add(begin)
        yield
        self._add(end)

    def var_scope(self, name: str) -> Any:
        return self._block(VarBegin(name), VarEnd(name))

    def _role(self, role: str, expr: Expr | str | None) -> Any:
        if expr is None:
            return self._block(RoleBegin(role), RoleEnd(role))
        self.__iadd__(ExprList((RoleBegin(role), *leaves(as_expr(expr)), RoleEnd(role))))
        return self

    def system(self, expr: Expr | str | None = None) -> Any:
        return self._role("system", expr)

    def user(self, expr: Expr | str | None = None) -> Any:
        return self._role("user", expr)

    def assistant(self, expr: Expr | str | None = None) -> Any:
        return self._role("assistant", expr)

    def text(self) -> NoReturn:
        raise TypeError("a traced program has no text")

    def sync(self) -> None:
        """Does nothing: nothing runs."""

    def get_meta_info(self, name: str | None, timeout: float | None = None) -> None:
        """Empty: nothing was generated."""


class TracedForks:
    """The forks of a traced state."""

    def __init__(self, states: list[TracerProgramState], parent: TracerProgramState) -> None:
        self.states = states
        self._parent = parent

    def __getitem__(self, index: int) -> TracerProgramState:
        return self.states[index]

    def __setitem__(self, index: int, state: TracerProgramState) -> None:
        check_same_fork(self.states[index], index, state)

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[TracerProgramState]:
        return iter(self.states)

    def __iadd__(self, other: Any) -> TracedForks:
        for i, state in enumerate(self.states):
            state += (
                other(i) if callable(other) and not isinstance(other, Expr) else other[i] if isinstance(other, list) else other
            )
        return self

    def join(self, mode: str = "gather_variable") -> None:
        self._parent._add(f"Join({mode})")
        for state in self.states:
            for name in state.variables:
                self._parent.variables.setdefault(name, Placeholder(name, "variable"))


class _PrefixState(TracerProgramState):
    """Writes real text with the backend's template, until something comes that differs between runs."""

    def __init__(self, executor: Executor) -> None:
        super().__init__(executor.backend)
        self.executor = executor

    def _add(self, expr: Expr | str) -> None:
        if not isinstance(expr, Expr) or type(expr) not in LOCAL_PIECES:
            raise StopTracing
        self.executor.submit(expr)


@dataclass
class Tracer:
    """An open tracing scope: programs called inside it are traced, too."""

    backend: BaseBackend

    def call(self, program: Program, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TracerProgramState:
        state = TracerProgramState(self.backend)
        _run(program, state, {**dict(zip(program.arg_names, args, strict=False)), **kwargs})
        return state


_current: ContextVar[Tracer | None] = ContextVar("sglang_tracer", default=None)


def current_tracer() -> Tracer | None:
    return _current.get()


def _run(program: Program, state: TracerProgramState, given: Mapping[str, Any]) -> None:
    if program.is_async:
        raise TypeError(f"{program.func.__name__} is an async program: only plain ones can be traced")
    given = {**given, **program.bind_arguments}
    values = {name: given.get(name, Placeholder(name, "argument")) for name in program.arg_names}
    state.ret_value = program.func(state, **values)


def trace_program(program: Program, arguments: Mapping[str, Any], backend: Any = None) -> TracerProgramState:
    """The pieces that `program` is made of; missing arguments are placeholders."""
    for name in arguments:
        if name not in program.arg_names:
            raise TypeError(f"{program.func.__name__} has no argument {name!r}")
    tracer = Tracer(BaseBackend() if backend is None else resolve_backend(backend))
    token = _current.set(tracer)
    try:
        return tracer.call(program, (), arguments)
    finally:
        _current.reset(token)


def extract_prefix(program: Program, backend: BaseBackend) -> Prompt:
    """The text that every run of `program` begins with, whatever its unbound arguments."""
    executor = Executor(backend)
    token = _current.set(Tracer(backend))
    try:
        _run(program, _PrefixState(executor), {})
    except (StopTracing, TypeError, AttributeError):
        pass  # code that needs a real argument ends the prefix
    finally:
        _current.reset(token)
    return executor.transcript.prompt()
