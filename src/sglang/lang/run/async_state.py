"""The state of an `async def` program: the same methods, with `await` where ProgramState blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sglang.common.interrupts import wait_for
from sglang.lang.chat_template import Message
from sglang.lang.errors import copy_of
from sglang.lang.ir import Expr, Gen
from sglang.lang.run.state import ProgramStateGroup, StateBase, check_fork, typed_value
from sglang.lang.run.streams import follow_async, wait_async_until
from sglang.lang.run.variables import Name

if TYPE_CHECKING:
    from sglang.lang.typed.tools import ToolResult


class AsyncProgramState(StateBase):
    """`s += ...` as ever; `await s["x"]`, `await s.text()`, `async for piece in s.stream("x")`."""

    def __getitem__(self, name: Name) -> Awaitable[Any]:
        return self.get_var(name)

    async def get_var(self, name: Name) -> Any:
        """Waits for the variable. Raises KeyError when nothing writes it, and the error of a piece that failed."""
        executor = self.stream_executor
        await wait_async_until(executor, lambda: executor.poll(name))
        return executor.vars.texts[name]

    async def value(self, name: Name) -> Any:
        """The object of a gen with a `dtype`; the text of any other variable."""
        text = await self.get_var(name)
        return typed_value(self.stream_executor, name, text)

    async def call_tools(self, name: Name) -> list[ToolResult]:
        """Makes the calls of a gen with `tools`, all at once; results in the order of the calls."""
        return list(await asyncio.gather(*(call.arun() for call in await self.value(name))))

    async def get_meta_info(self, name: Name, timeout: float | None = None) -> Any:
        """The backend's metadata of a variable, or None. Raises TimeoutError."""
        try:
            await wait_for(self.get_var(name), timeout)
        except KeyError:
            return None
        except asyncio.TimeoutError as error:
            raise TimeoutError(f"the value was not there after {timeout:g} seconds") from error
        return self.stream_executor.vars.metas.get(name)

    async def sync(self) -> None:
        """Waits for everything added so far; raises what went wrong."""
        await wait_async_until(self.stream_executor, lambda: self.stream_executor.is_finished)
        if self.stream_executor.error is not None:
            raise copy_of(self.stream_executor.error)

    async def text(self) -> str:
        await self.sync()
        return self.stream_executor.text

    async def messages(self) -> list[Message]:
        await self.sync()
        return self.stream_executor.transcript.messages

    async def error(self) -> BaseException | None:
        """Waits, and returns the error instead of raising it."""
        await wait_async_until(self.stream_executor, lambda: self.stream_executor.is_finished)
        return self.stream_executor.error

    async def stream(self, what: str | Expr | None = None) -> AsyncGenerator[str, None]:
        """Pieces of a variable as the model writes it, or of the whole text (None). Given a gen instead of a name, adds it
        and streams it whether or not the run streams."""
        name: Name = what if isinstance(what, str) else None
        if isinstance(what, Expr):
            name = self._add_streaming(what)
        async for piece, _ in follow_async(self.stream_executor, name, what is None):
            yield piece

    def _add_streaming(self, expr: Expr) -> Name:
        if not isinstance(expr, Gen):
            raise TypeError(f"stream takes a variable's name or a gen, not {type(expr).__name__}")
        self.stream_executor.submit(replace(expr, stream=True))
        return expr.name

    def fork(self, size: int = 1, position_ids_offset: Sequence[int] | None = None) -> ProgramStateGroup[AsyncProgramState]:
        """`size` copies that continue independently."""
        check_fork(size, position_ids_offset)
        return ProgramStateGroup([AsyncProgramState(child) for child in self.stream_executor.fork(size)], self)

    @asynccontextmanager
    async def copy(self) -> AsyncIterator[AsyncProgramState]:
        """A branch for the block; the variables it adds are the state's afterwards, its text is not."""
        (child,) = self.stream_executor.fork(1)
        try:
            yield AsyncProgramState(child, is_owner=False)
        finally:
            self.stream_executor.join([child], "copy")

    def __repr__(self) -> str:
        return f"AsyncProgramState({self.stream_executor.text!r})"
