"""The example programs of the language: they run, and type checkers see the API through them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sglang as sgl

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples" / "language").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path: Path, server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    try:
        module.main(server.url)
    finally:
        sgl.set_default_backend(None)
        del sys.modules[spec.name]
    assert capsys.readouterr().out.strip()


def test_mypy_accepts_it() -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", *map(str, EXAMPLES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_trained_adapter_answers_as_it_was_taught(tmp_path: Path) -> None:
    """`pytest -m slow tests/docs/test_examples.py`: PEFT trains, the Engine serves what it has saved."""
    pytest.importorskip("peft")
    command = [sys.executable, str(ROOT / "examples" / "train_lora.py"), str(tmp_path / "adapter")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
