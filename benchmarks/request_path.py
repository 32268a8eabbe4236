"""The files and functions that one chat request enters, in order: what docs/architecture.md tells, measured.

    .venv-test/bin/python -m benchmarks.request_path [--constrained] [--functions]

The application, the manager and the scheduler of the default model run on threads of this process, as in `sglang.Engine`. A first
request with other words warms everything up; during the second one a profile function notes every call of the package's functions.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx

import sglang
from sglang.srt.engine import Engine
from sglang.srt.server.http.app import create_app
from sglang.srt.server_args import ServerArgs

PACKAGE = Path(sglang.__file__).parent
QUESTION = {"messages": [{"role": "user", "content": "Name a fruit."}], "max_tokens": 8, "temperature": 0}
FIRST = {"messages": [{"role": "user", "content": "How far is the moon?"}]}
REST_SECONDS, MAX_RESTS = 2.0, 15
"""an idle process is observed for so long at a time, until it does the same twice: the work of idle moments is done by then"""


@dataclass
class Entered:
    """Calls of functions, by all threads together."""

    calls: list[CodeType] = field(default_factory=list)
    on: bool = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if self.on and event == "call":
            self.calls.append(frame.f_code)

    @property
    def names(self) -> list[tuple[str, str]]:
        """[(path within the package, qualified name)] of every call."""
        paths = {code: Path(code.co_filename) for code in set(self.calls)}
        names = {
            code: (path.relative_to(PACKAGE).as_posix(), getattr(code, "co_qualname", code.co_name))
            for code, path in paths.items()
            if path.is_relative_to(PACKAGE)
        }
        return [names[code] for code in self.calls if code in names]

    @property
    def functions(self) -> list[tuple[str, str]]:
        """The same, each once, in the order of first calls."""
        return list(dict.fromkeys(self.names))

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(file for file, name in self.functions if not name.startswith("<")))


@contextmanager
def noted(entered: Entered) -> Iterator[None]:
    """Threads that start here call `entered` whenever a function is called."""
    threading.setprofile(entered)
    try:
        yield
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


def wait_for_idleness(entered: Entered) -> None:
    """Until the same functions run in two periods one after the other. Forgets their calls."""
    before: set[tuple[str, str]] | None = None
    for _ in range(MAX_RESTS):
        entered.on = True
        time.sleep(REST_SECONDS)
        entered.on = False
        now = set(entered.functions)
        entered.calls.clear()
        if now == before:
            return
        before = now


def follow(body: dict[str, Any]) -> Entered:
    """The calls of a POST /v1/chat/completions with this body."""
    entered = Entered()
    args = ServerArgs(log_level="error")
    with noted(entered), Engine(args) as engine:
        app = create_app(engine._manager, args.resolve().http)

        async def ask(body: dict[str, Any]) -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=300
            ) as client:
                return await client.post("/v1/chat/completions", json=body)

        def answer(body: dict[str, Any]) -> httpx.Response:
            return asyncio.run_coroutine_threadsafe(ask(body), engine._loop).result()

        answer(body | FIRST).raise_for_status()
        wait_for_idleness(entered)
        entered.on = True
        answer(body).raise_for_status()
        entered.on = False
    return entered


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constrained", action="store_true", help="hold the answer to a regular expression")
    parser.add_argument("--functions", action="store_true", help="print functions, not only files")
    parser.add_argument("--calls", action="store_true", help="print every call")
    chosen = parser.parse_args(arguments)
    entered = follow(QUESTION | ({"regex": "[A-Z][a-z]{1,20}"} if chosen.constrained else {}))
    calls = entered.names if chosen.calls else entered.functions if chosen.functions else [(file,) for file in entered.files]
    for call in calls:
        print(*call, sep="  ")
    print(f"{len(entered.files)} files, {len(entered.functions)} functions")


if __name__ == "__main__":
    main(sys.argv[1:])
