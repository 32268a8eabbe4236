"""pip_progress.py ARGUMENTS: pip of this Python, with what it does in one line that changes on a terminal, and a line for each step
elsewhere. If it fails, all that it said."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from typing import IO, Any

STEP = re.compile(
    r"(Collecting|Downloading|Using cached|Preparing|Getting|Installing|Building|Obtaining|Attempting|Created)\b.*"
)
KERNELS = re.compile(r"Building .*kernels.*: (started|still running)")
TICK = 1.0
"""seconds after which the line is written again, with the time that has passed"""


def shown(line: str) -> str | None:
    """A line of pip as the newcomer sees it; None for those that say nothing new."""
    if KERNELS.search(line):
        return "Compiling the CPU kernels ..."
    step = STEP.match(line.strip())
    return re.sub(r"\s+", " ", step[0].split(" (from ")[0]) if step else None


class Line:
    """One line of a terminal, or a line each elsewhere. Elsewhere only downloads and builds are worth one."""

    def __init__(self) -> None:
        self._changes = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last = ""

    def show(self, text: str) -> None:
        if self._changes:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            seen = f"  {time.monotonic() - self._began:3.0f} s  {text}"[: width - 1]
            print(f"\r\x1b[K{seen}", end="", file=sys.stderr, flush=True)
        elif text != self._last and text.startswith(("Downloading", "Compiling", "Installing")):
            print(f"  {text}", file=sys.stderr, flush=True)
        self._last = text

    def tick(self) -> None:
        if self._changes and self._last:
            self.show(self._last)

    def clear(self) -> None:
        if self._changes:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def follow(lines: IO[str], said: list[str], line: Line) -> None:
    """Shows the steps until pip ends."""
    waiting: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for text in lines:
            waiting.put(text)
        waiting.put(None)

    threading.Thread(target=read, daemon=True).start()
    while True:
        try:
            text = waiting.get(timeout=TICK)
        except queue.Empty:
            line.tick()
            continue
        if text is None:
            return
        said.append(text)
        if step := shown(text):
            line.show(step)


def main() -> int:
    """The command. Its exit status is pip's."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *sys.argv[1:]]
    environ = {**os.environ, "PIP_NO_COMPILE": "no"}  # switches it on; Python compiles what is imported, one module in seven
    said: list[str] = []
    line = Line()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(command, env=environ, **pipes) as process:
        assert process.stdout is not None
        try:
            follow(process.stdout, said, line)
        except KeyboardInterrupt:
            process.wait()
            line.clear()
            return 130
    line.clear()
    if process.returncode:
        print("".join(said), end="", file=sys.stderr)
    return process.returncode


if __name__ == "__main__":
    raise SystemExit(main())
