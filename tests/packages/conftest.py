"""Distributions of this tree, and environments that have nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DIST = ROOT / "dist"


def clean_environment() -> dict[str, str]:
    """Without what would lead to this tree or to the environment of the tests."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV")}


def build(*architectures: str) -> None:
    done = subprocess.run(
        [ROOT / "scripts/build_wheels", sys.executable, *architectures], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def newest(pattern: str) -> Path:
    return max(DIST.glob(pattern), key=lambda path: path.stat().st_mtime)


@pytest.fixture(scope="session")
def language() -> Path:
    """The wheel of the language; those of the kernels for this machine lie beside it."""
    build()
    return newest("sglang_anywhere-*.whl")


def make_environment(folder: Path) -> Path:
    """Python of an environment that has pip alone."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder / "bin" / "python"
