"""The lines that an installation shows of pip's output."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "pip_progress.py"
SPEC = importlib.util.spec_from_file_location("pip_progress", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
pip_progress = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pip_progress)


COMPILING = "Compiling the CPU kernels ..."


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  Building editable for x (pyproject.toml): started\n", "Building editable for x (pyproject.toml): started"),
        ("  Preparing editable metadata (pyproject.toml): started\n", "Preparing editable metadata (pyproject.toml): started"),
        ("Collecting numpy<3,>=1.26 (from sglang-anywhere==0.1.0)\n", "Collecting numpy<3,>=1.26"),
        ("  Downloading numpy-2.0.whl (16.9 MB)\n", "Downloading numpy-2.0.whl (16.9 MB)"),
        ("Installing collected packages: a, b\n", "Installing collected packages: a, b"),
        ("Looking in links: /somewhere\n", None),
        ("\n", None),
    ],
)
def test_steps(line: str, step: str | None) -> None:
    assert pip_progress.shown(line, False) == step


@pytest.mark.parametrize("step", ["Preparing editable metadata", "Building editable for sglang-anywhere-kernels"])
def test_kernels_are_compiled_before_their_metadata_is_known(step: str) -> None:
    for state in ("started", "still running..."):
        assert pip_progress.shown(f"  {step} (pyproject.toml): {state}\n", True) == COMPILING
    assert pip_progress.shown(f"  {step} (pyproject.toml): finished with status 'done'\n", True) != COMPILING
    assert pip_progress.shown("  Installing build dependencies: started\n", True) != COMPILING


def test_failures_show_all_output_and_pips_status() -> None:
    command = [sys.executable, str(SCRIPT), "install", "--no-index", "no-such-package-as-this"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "No matching distribution" in done.stderr and not done.stdout
    fine = subprocess.run([sys.executable, str(SCRIPT), "--version"], capture_output=True, text=True)
    assert fine.returncode == 0 and not fine.stderr


def test_two_at_the_same_time_end_together_and_the_failing_one_is_heard() -> None:
    missing = ["install", "--no-index", "no-such-package-as-this"]
    for first, second in ((missing, ["--version"]), (["--version"], missing)):
        done = subprocess.run([sys.executable, str(SCRIPT), *first, "--and", *second], capture_output=True, text=True)
        assert done.returncode == 1 and "No matching distribution" in done.stderr and "pip 2" not in done.stderr
    fine = subprocess.run([sys.executable, str(SCRIPT), "--version", "--and", "--version"], capture_output=True, text=True)
    assert fine.returncode == 0 and not fine.stderr
