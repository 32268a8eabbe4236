"""scripts/lock: one installation at a time in a checkout, until all that it started has ended."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(shutil.which("flock") is None, reason="without flock there is no lock")


def start(folder: Path, then: str) -> subprocess.Popen[str]:
    """A script that takes the lock and goes on with `then`."""
    command = ["sh", "-ec", f". scripts/lock; {then}"]
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.parametrize("orphan", [False, True])
def test_the_second_waits_and_says_so(tmp_path: Path, orphan: bool) -> None:
    """Also for a child of one that was killed."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/lock", tmp_path / "scripts")
    first = start(tmp_path, "echo began; cat; true" if orphan else "echo began; exec cat")
    assert read_line(first) == "began\n"
    second = start(tmp_path, "echo began")
    assert read_line(second).startswith("Waiting for another installation")
    if orphan:
        first.kill()
        first.wait()
    assert second.poll() is None
    assert first.stdin is not None
    first.stdin.close()
    assert second.communicate(timeout=60)[0] == "began\n"
