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


MAX_FILES = 53
"""that a constrained chat request enters; one without a constraint enters seven fewer"""


def followed() -> list[tuple[str, str]]:
    """(file, function) of every call of a constrained chat request."""
    command = [sys.executable, "-m", "benchmarks.request_path", "--constrained", "--calls"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240).stdout.splitlines()
    return [(file, name) for file, name in (line.split("  ") for line in lines[:-1])]


def num_files(calls: list[tuple[str, str]]) -> int:
    return len({file for file, name in calls if not name.startswith("<")})


def test_the_table_follows_a_request_step_by_step() -> None:
    rows = told()
    assert len(rows) > 20
    every = min((followed() for _ in range(3)), key=num_files)  # idle work of the process may fall into one of them
    assert num_files(every) <= MAX_FILES
    calls = iter(every)
    assert next((row for row in rows if row not in calls), None) is None, (
        "the first row that does not come after the one before"
    )
