"""docs/architecture.md tells the way of one request as it is: its table is compared with a request that is followed."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import ROOT

ROW = re.compile(r"^\| *(?:\d+)? *\| `([\w/.]+\.py)` \| ([^|]+) \|", re.MULTILINE)


def told() -> list[tuple[str, str]]:
    """[(file, function)] as the table has them."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.split("## The way of one request")[1].split("\n## ")[0]
    return [(f"srt/{file}", name) for file, names in ROW.findall(section) for name in re.findall(r"`([\w.]+)`", names)]


MAX_FILES = 45
"""that one plain chat request enters; a constraint adds at most MORE_FILES"""
MORE_FILES = 8
IDLE_FILES = {"srt/model/kv_pool.py", "srt/process/heap.py", "srt/scheduler/viewing.py"}
"""entered in idle moments only, which may come before the reply has been read"""


def followed(*options: str) -> list[tuple[str, str]]:
    """(file, function) of every call of a chat request."""
    command = [sys.executable, "-m", "benchmarks.request_path", "--calls", *options]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240).stdout.splitlines()
    return [(file, name) for file, name in (line.split("  ") for line in lines[:-1])]


def num_files(calls: list[tuple[str, str]]) -> int:
    return len({file for file, name in calls if not name.startswith("<")} - IDLE_FILES)


def fewest_files(limit: int, *options: str) -> list[tuple[str, str]]:
    """A request that enters at most `limit` files, of three at most: idle work of the process may fall into one of them."""
    runs: list[list[tuple[str, str]]] = []
    while len(runs) < 3 and (not runs or num_files(runs[-1]) > limit):
        runs.append(followed(*options))
    return min(runs, key=num_files)


def test_a_plain_request_enters_few_files() -> None:
    assert num_files(fewest_files(MAX_FILES)) <= MAX_FILES


def test_the_table_follows_a_request_step_by_step() -> None:
    rows = told()
    assert len(rows) > 20
    every = fewest_files(MAX_FILES + MORE_FILES, "--constrained")
    assert num_files(every) <= MAX_FILES + MORE_FILES
    calls = iter(every)
    assert next((row for row in rows if row not in calls), None) is None, (
        "the first row that does not come after the one before"
    )
