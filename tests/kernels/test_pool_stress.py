"""The thread pool under delays at its worst moments: see pool_stress.cpp. `scripts/sanitize` runs it longer, and watched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_places_belong_to_one_thread(tmp_path: Path) -> None:
    program = tmp_path / "pool_stress"
    sources = ["tests/kernels/pool_stress.cpp", "csrc/pool.cpp", "csrc/delays.cpp"]
    build = [str(COMPILER), "-std=c++17", "-O1", "-pthread", "-DPOOL_DELAYS", "-Icsrc", *sources, "-o", str(program)]
    subprocess.run(build, cwd=ROOT, check=True, timeout=120)
    done = subprocess.run([str(program), "0.05"], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
