"""pip_progress.py ARGUMENTS: pip of this Python, with what it does in one line that changes on a terminal, and a line for each step
elsewhere. If it fails, all that it said."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

STEP = re.compile(
    r"(Collecting|Downloading|Using cached|Preparing|Getting|Installing|Building|Obtaining|Attempting|Created)\b.*"
)
KERNELS = re.compile(r"Building .*kernels.*: (started|still running)")
SHORTEST = 0.1
"""seconds between changes of the line"""


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
        self._last, self._written = "", 0.0

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self._changes and now - self._written >= SHORTEST:
            self._written = now
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(f"\r\x1b[K  {now - self._began:3.0f} s  {text}"[: width + 3], end="", file=sys.stderr, flush=True)
        elif not self._changes and text != self._last and text.startswith(("Downloading", "Compiling", "Installing")):
            print(f"  {text}", file=sys.stderr, flush=True)
        self._last = text

    def clear(self) -> None:
        if self._changes:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def main() -> int:
    """The command. Its exit status is pip's."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *sys.argv[1:]]
    said: list[str] = []
    line = Line()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as process:
        assert process.stdout is not None
        try:
            for text in process.stdout:
                said.append(text)
                if step := shown(text):
                    line.show(step)
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
