"""docs/architecture.md tells the way of one program as it is: its table is compared with a program that is followed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| *\d+ *\| `(lang/[\w/.]+\.py)` `([\w.]+)` \|", re.MULTILINE)
FOLLOWED = """
import sys, threading

calls = []

def note(frame, event, argument):
    if event == "call" and "/sglang/lang/" in frame.f_code.co_filename:
        calls.append(("lang/" + frame.f_code.co_filename.split("/sglang/lang/")[1], frame.f_code.co_name))

from tests.lang.native_server import NativeServer
import sglang as sgl

@sgl.function
def program(s):
    s += "The capital is" + sgl.gen("x")

with NativeServer() as server:
    threading.setprofile(note)
    sys.setprofile(note)
    state = program.run(backend=sgl.RuntimeEndpoint(server.url))
    state["x"]
    sys.setprofile(None)
for file, name in list(calls):
    print(file, name)
"""


def test_the_table_follows_a_program_step_by_step() -> None:
    section = (ROOT / "docs" / "architecture.md").read_text().split("## The way of one program")[1].split("\n## ")[0]
    rows = [(file, name.split(".")[-1]) for file, name in ROW.findall(section)]
    assert len(rows) == section.count("| `lang/") > 10
    done = subprocess.run([sys.executable, "-c", FOLLOWED], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    calls = iter([tuple(line.split()) for line in done.stdout.splitlines()])
    assert next((row for row in rows if row not in calls), None) is None, (
        "the first row that does not come after the one before"
    )
