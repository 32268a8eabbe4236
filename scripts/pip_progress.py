"""pip_progress.py ARGUMENTS [--and ARGUMENTS]: pip of this Python, with what it does in one line that changes on a terminal, and a line
for each step elsewhere. If it fails, all that it said. With --and, two of them at the same time."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from itertools import groupby
from typing import Any

STEP = re.compile(
    r"(Collecting|Downloading|Using cached|Preparing|Getting|Installing|Building|Obtaining|Attempting|Created)\b.*"
)
COMPILES = re.compile(r"(Preparing editable metadata|Building editable) .*: (started|still running)")
"""of the kernels' folder: whether they can be compiled is a part of its metadata"""
TICK = 1.0
"""seconds after which the line is written again, with the time that has passed"""


def shown(line: str, kernels: bool) -> str | None:
    """A line of pip as the newcomer sees it; None for those that say nothing new. `kernels`: it is theirs alone that pip installs."""
    if kernels and COMPILES.search(line):
        return "Compiling the CPU kernels ..."
    step = STEP.match(line.strip())
    return re.sub(r"\s+", " ", step[0].split(" (from ")[0]) if step else None


class Line:
    """One line of a terminal, or a line each elsewhere. Elsewhere only downloads and builds are worth one."""

    def __init__(self) -> None:
        self._changes = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last = ""
        self._listed: set[str] = set()

    def show(self, text: str) -> None:
        if self._changes:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            seen = f"  {time.monotonic() - self._began:3.0f} s  {text}"[: width - 1]
            print(f"\r\x1b[K{seen}", end="", file=sys.stderr, flush=True)
        elif text not in self._listed and text.startswith(("Downloading", "Compiling", "Installing")):
            print(f"  {text}", file=sys.stderr, flush=True)
        self._listed.add(text)
        self._last = text

    def tick(self) -> None:
        if self._changes and self._last:
            self.show(self._last)

    def clear(self) -> None:
        if self._changes:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Pip:
    """One run of pip. Its output goes line by line into `lines`, and None at its end."""

    def __init__(self, arguments: list[str], lines: queue.Queue[tuple[Pip, str | None]]) -> None:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
        environ = {
            **os.environ,
            "PIP_NO_COMPILE": "no",
        }  # switches it on; Python compiles what is imported, one module in seven
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        # Open files too: the lock of the script that runs this one (scripts/lock) is held for as long as a pip works.
        self.process = subprocess.Popen(command, env=environ, close_fds=False, **pipes)
        self.kernels = "./csrc" in arguments
        self.said: list[str] = []
        self.step = ""
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines: queue.Queue[tuple[Pip, str | None]]) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            lines.put((self, text))
        lines.put((self, None))


def follow(runs: list[Pip], lines: queue.Queue[tuple[Pip, str | None]], line: Line) -> None:
    """Shows the steps until all have ended."""
    going = list(runs)
    while going:
        try:
            pip, text = lines.get(timeout=TICK)
        except queue.Empty:
            line.tick()
            continue
        if text is None:
            going.remove(pip)
            if going and going[-1].step:
                line.show(going[-1].step)
            continue
        pip.said.append(text)
        if step := shown(text, pip.kernels):
            pip.step = step
            line.show(step)


def main() -> int:
    """The command. Its exit status is that of the first pip that fails."""
    commands = [list(words) for is_and, words in groupby(sys.argv[1:], lambda word: word == "--and") if not is_and]
    lines: queue.Queue[tuple[Pip, str | None]] = queue.Queue()
    line = Line()
    runs = [Pip(command, lines) for command in commands]
    try:
        follow(runs, lines, line)
        failed = [pip for pip in runs if pip.process.wait()]
    except KeyboardInterrupt:
        for pip in runs:
            pip.process.wait()
        line.clear()
        return 130
    line.clear()
    for pip in failed:
        print("".join(pip.said), end="", file=sys.stderr)
    return failed[0].process.returncode if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
